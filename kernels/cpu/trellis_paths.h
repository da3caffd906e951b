// The cheapest path through the trellis, for several groups side by side so that one waits while another works.
//
// An instruction set's Paths<BITS> has the sums of all states (Metrics) and what happens to them; here is the order of
// things. A sum holds in its lowest bits the way by which its state was reached, so that a minimum finds both.
#pragma once

#include "trellis_costs.h"
#include "trellis_groups.h"

namespace tq {
namespace {

constexpr int kLowered = 8;  // weights after which the least sum is subtracted

// The ways of two steps for each state: bytes 2 * state and 2 * state + 1; only their lowest bits count.
template <int BITS>
struct alignas(64) Ways {
  uint8_t at[2 * Trellis<BITS>::kStates];
};

template <class Paths, int BITS>
struct Search {
  static constexpr int kTogether = Paths::kTogether;
  static constexpr int kStates = Trellis<BITS>::kStates;

  typename Paths::Metrics metrics[kTogether];
  Ways<BITS> ways[kTogether][kLargestGroup / 2];

  // size: weights of each group.
  TQ_NOINLINE void forward(const uint16_t (*cells)[kLargestGroup], int size, const uint16_t* costs) {
    const Paths paths;
    typename Paths::Metrics sums[kTogether] = {};
    for (int start = 0; start < size; start += kLowered) {
      for (int at = start; at < start + kLowered; at += 2) {
        each<kTogether>([&](auto g) TQ_LAMBDA {
          const auto first = paths.step(sums[g], costs + kWindows * static_cast<int32_t>(cells[g][at]));
          const auto second = paths.step(paths.bare(first), costs + kWindows * static_cast<int32_t>(cells[g][at + 1]));
          paths.keep(first, second, ways[g][at / 2].at);
          sums[g] = paths.bare(second);
        });
      }
      each<kTogether>([&](auto g) TQ_LAMBDA { sums[g] = paths.lowered(sums[g]); });
    }
    each<kTogether>([&](auto g) TQ_LAMBDA { metrics[g] = sums[g]; });
  }

  // Follows the ways back from the least sum. `bits` are those of the stream from weight t's window on; eight weights
  // fill whole bytes, and what is written too low is written over by the eight before.
  TQ_NOINLINE void backward(int size, Stream* streams) const {
    constexpr uint64_t kWayMask = Trellis<BITS>::kWays - 1;
    uint64_t bits[kTogether];
    for (int g = 0; g < kTogether; ++g) bits[g] = static_cast<uint64_t>(Paths::least_state(metrics[g]));
    for (int start = size - 8; start >= 0; start -= 8) {
      each<8>([&](auto i) TQ_LAMBDA {
        constexpr int kAt = 7 - i;
        each<kTogether>([&](auto g) TQ_LAMBDA {
          const uint64_t way = ways[g][start / 2 + kAt / 2].at[2 * (bits[g] & (kStates - 1)) + kAt % 2];
          bits[g] = bits[g] << BITS | (way & kWayMask);
        });
      });
      each<kTogether>([&](auto g) TQ_LAMBDA {
        const uint64_t moved = bits[g] << BITS;
        std::memcpy(streams[g].at + 1 + start * BITS / 8, &moved, sizeof moved);
      });
    }
  }
};

}  // namespace
}  // namespace tq
