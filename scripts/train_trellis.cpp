// The paths of `train_trellis`: Viterbi over the trellis of 8-bit windows, integers only, so that every compiler and
// processor finds the same ones. The trainer compiles this file when it starts.
//
// A state is what two neighbouring windows share, 8 - BITS bits; window (state << BITS) | way leads into `state` from
// the state in the window's lowest 8 - BITS bits. Sums carry the way in their lowest bits: of equal ways the lowest
// wins.

#include <cstdint>
#include <cstring>

namespace {

constexpr int kSize = 128;  // weights in a group
constexpr int kLanes = 32;
constexpr int kGroups = 2;  // side by side, to hide latencies
constexpr uint16_t kGreatestSum = 0xBFFF;  // and costs are at most 0x3FFF: no addition overflows

typedef uint16_t Lanes __attribute__((vector_size(64)));

inline Lanes smaller(Lanes a, Lanes b) { return a < b ? a : b; }

template <int BITS>
struct Trellis {
    static constexpr int kWays = 1 << BITS;
    static constexpr int kStates = 1 << (8 - BITS);
    static constexpr int kVectors = kStates > kLanes ? kStates / kLanes : 1;
    static constexpr int kRow = kVectors * kLanes;  // with 16 states every lane appears twice
    using Sums = Lanes[kVectors];

    Lanes sources[kWays];

    Trellis() {
        for (int way = 0; way < kWays; way++)
            for (int lane = 0; lane < kLanes; lane++)
                sources[way][lane] = static_cast<uint16_t>((lane << BITS | way) & (kStates - 1));
    }

    static Lanes pick(const Sums& sums, Lanes places) {
        if constexpr (kVectors == 1)
            return __builtin_shuffle(sums[0], places);
        else
            return __builtin_shuffle(sums[0], sums[1], places);
    }

    // costs: kWays rows of kRow numbers.
    void advance(Sums& sums, const uint16_t* costs, uint16_t* back) const {
        Sums least;
#pragma GCC unroll 16
        for (int way = 0; way < kWays; way++) {
            const Lanes before = pick(sums, sources[way]);
            for (int v = 0; v < kVectors; v++) {
                Lanes cost;
                std::memcpy(&cost, costs + way * kRow + v * kLanes, sizeof cost);
                least[v] = way ? smaller(least[v], before + cost) : before + cost;
            }
        }
        for (int v = 0; v < kVectors; v++) {
            std::memcpy(back + v * kLanes, &least[v], sizeof least[v]);
            sums[v] = smaller(least[v], Lanes{} + kGreatestSum) & static_cast<uint16_t>(~(kWays - 1));
        }
    }

    static void subtract_least(Sums& sums) {
        uint16_t least = 0xFFFF;
        for (int v = 0; v < kVectors; v++)
            for (int lane = 0; lane < kLanes; lane++) least = sums[v][lane] < least ? sums[v][lane] : least;
        for (int v = 0; v < kVectors; v++) sums[v] -= least;
    }

    void encode(const uint16_t* cells, const uint16_t* costs, uint8_t* windows, uint16_t* back) const {
        Sums sums[kGroups] = {};
        for (int t = 0; t < kSize; t++)
            for (int g = 0; g < kGroups; g++) {
                const int place = g * kSize + t;
                advance(sums[g], costs + static_cast<size_t>(cells[place]) * kWays * kRow, back + place * kRow);
                if (t % 8 == 7) subtract_least(sums[g]);
            }
        for (int g = 0; g < kGroups; g++) trace(sums[g], back + g * kSize * kRow, windows + g * kSize);
    }

    static void trace(const Sums& sums, const uint16_t* back, uint8_t* windows) {
        int state = 0;
        for (int other = 1; other < kStates; other++)
            if (sums[other / kLanes][other % kLanes] < sums[state / kLanes][state % kLanes]) state = other;
        for (int t = kSize - 1; t >= 0; t--) {
            const int window = state << BITS | (back[t * kRow + state] & (kWays - 1));
            windows[t] = static_cast<uint8_t>(window);
            state = window & (kStates - 1);
        }
    }
};

template <int BITS>
void encode_all(int64_t groups, const uint16_t* cells, const uint16_t* costs, uint8_t* windows) {
    const Trellis<BITS> trellis;
    alignas(64) static thread_local uint16_t back[kGroups * kSize * Trellis<BITS>::kRow];
    for (int64_t g = 0; g < groups; g += kGroups)
        trellis.encode(cells + g * kSize, costs, windows + g * kSize, back);
}

}  // namespace

// cells: (groups, 128), groups even; costs: (cells, 1 << bits, states, or twice the 16 of 4 bits).
extern "C" void find_paths(int32_t bits, int64_t groups, const uint16_t* cells, const uint16_t* costs,
                           uint8_t* windows) {
    if (bits == 2) encode_all<2>(groups, cells, costs, windows);
    if (bits == 3) encode_all<3>(groups, cells, costs, windows);
    if (bits == 4) encode_all<4>(groups, cells, costs, windows);
}
