// Steps through the trellis with AVX2: every 16 sums of 16 bits are one vector.
#pragma once

#include <immintrin.h>

#include "trellis_paths.h"

namespace tq {
namespace {

template <int N>
struct SumsAvx2 {
  __m256i at[N];
};

TQ_INLINE __m256i load_256(const void* from) { return _mm256_load_si256(static_cast<const __m256i*>(from)); }
TQ_INLINE __m256i least_256(__m256i a, __m256i b) { return _mm256_min_epu16(a, b); }

// What the numbers of bits share.
template <int BITS, int TOGETHER>
struct CommonAvx2 {
  static constexpr int kStates = Trellis<BITS>::kStates;
  static constexpr int kVectors = kStates / 16;
  static constexpr int kTogether = TOGETHER;
  using Metrics = SumsAvx2<kVectors>;

  static constexpr int lane(int state) { return state; }
  static constexpr int place(int way, int state) { return way * kStates + state; }

  TQ_INLINE Metrics bare(Metrics sums) const {
    const __m256i mask = _mm256_set1_epi16(static_cast<int16_t>(-Trellis<BITS>::kWays));
    each<kVectors>([&](auto v) TQ_LAMBDA { sums.at[v] = _mm256_and_si256(sums.at[v], mask); });
    return sums;
  }

  TQ_INLINE Metrics lowered(Metrics sums) const {
    __m256i joined = sums.at[0];
    each<kVectors - 1>([&](auto v) TQ_LAMBDA { joined = least_256(joined, sums.at[v + 1]); });
    const __m128i half = _mm_min_epu16(_mm256_castsi256_si128(joined), _mm256_extracti128_si256(joined, 1));
    const __m256i least = _mm256_broadcastw_epi16(_mm_minpos_epu16(half));
    each<kVectors>([&](auto v) TQ_LAMBDA { sums.at[v] = _mm256_sub_epi16(sums.at[v], least); });
    return sums;
  }

  // The lower bytes of two steps.
  static TQ_INLINE __m256i both(__m256i first, __m256i second) {
    const __m256i low = _mm256_and_si256(first, _mm256_set1_epi16(0xFF));
    return _mm256_or_si256(low, _mm256_slli_epi16(second, 8));
  }

  TQ_INLINE void keep(const Metrics& first, const Metrics& second, uint8_t* ways) const {
    each<kVectors>([&](auto v) TQ_LAMBDA {
      _mm256_store_si256(reinterpret_cast<__m256i*>(ways + 32 * v), both(first.at[v], second.at[v]));
    });
  }
};

// The first state whose sum is least; lane(state) tells where it stands.
template <class Paths>
TQ_INLINE int least_state_256(const typename Paths::Metrics& sums) {
  alignas(32) uint16_t at[Paths::kStates];
  each<Paths::kVectors>([&](auto v) TQ_LAMBDA {
    _mm256_store_si256(reinterpret_cast<__m256i*>(at + 16 * v), sums.at[v]);
  });
  int least = 0;
  for (int state = 1; state < Paths::kStates; ++state) {
    least = at[Paths::lane(state)] < at[Paths::lane(least)] ? state : least;
  }
  return least;
}

template <int BITS>
struct Avx2Paths;

// 64 states in four vectors; a way has the 16 states 4 * i + way before, each leading to four. A transposition brings
// them together: pairs of i within half vectors, then the vectors, then the halves.
template <>
struct Avx2Paths<2> : CommonAvx2<2, 4> {
  static TQ_INLINE int least_state(const Metrics& sums) { return least_state_256<Avx2Paths>(sums); }

  TQ_INLINE Metrics step(const Metrics& sums, const uint16_t* costs) const {
    const __m256i pairs = _mm256_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15,  //
                                           0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    const __m256i halves = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i quarter[4], sum[4][4];
    each<4>([&](auto v) TQ_LAMBDA { quarter[v] = _mm256_shuffle_epi8(sums.at[v], pairs); });
    const __m256i a = _mm256_unpacklo_epi32(quarter[0], quarter[1]), b = _mm256_unpacklo_epi32(quarter[2], quarter[3]);
    const __m256i c = _mm256_unpackhi_epi32(quarter[0], quarter[1]), d = _mm256_unpackhi_epi32(quarter[2], quarter[3]);
    const __m256i before[4] = {_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b), _mm256_unpacklo_epi64(c, d),
                               _mm256_unpackhi_epi64(c, d)};
    each<4>([&](auto way) TQ_LAMBDA {
      const __m256i from = _mm256_permutevar8x32_epi32(before[way], halves);
      each<4>([&](auto v) TQ_LAMBDA {
        sum[v][way] = _mm256_adds_epu16(from, load_256(costs + 64 * way + 16 * v));
      });
    });
    Metrics least;
    each<4>([&](auto v) TQ_LAMBDA {
      least.at[v] = least_256(least_256(sum[v][0], sum[v][1]), least_256(sum[v][2], sum[v][3]));
    });
    return least;
  }
};

// 32 states in two vectors, in an order that makes the transposition short: states 4 * i + r, r = 0..3, stand together,
// i = 0 4 1 5 in the first vector and 2 6 3 7 in the second. A way has the states way + 8 * i before.
template <>
struct Avx2Paths<3> : CommonAvx2<3, 4> {
  static constexpr int lane(int state) {
    return (state & 3) | (state & 8) << 1 | (state & 4) << 1 | (state & 16) >> 2;
  }
  static constexpr int place(int way, int state) { return way * kStates + lane(state); }
  static TQ_INLINE int least_state(const Metrics& sums) { return least_state_256<Avx2Paths>(sums); }

  // Ways stand in the order of the states.
  TQ_INLINE void keep(const Metrics& first, const Metrics& second, uint8_t* ways) const {
    const __m256i a = both(first.at[0], second.at[0]), b = both(first.at[1], second.at[1]);
    __m256i* const to = reinterpret_cast<__m256i*>(ways);
    _mm256_store_si256(to, _mm256_permute4x64_epi64(_mm256_unpacklo_epi64(a, b), 0xD8));
    _mm256_store_si256(to + 1, _mm256_permute4x64_epi64(_mm256_unpackhi_epi64(a, b), 0xD8));
  }

  TQ_INLINE Metrics step(const Metrics& sums, const uint16_t* costs) const {
    const __m256i low = _mm256_unpacklo_epi16(sums.at[0], sums.at[1]);
    const __m256i high = _mm256_unpackhi_epi16(sums.at[0], sums.at[1]);
    const __m256i sorted[2] = {_mm256_unpacklo_epi32(low, high), _mm256_unpackhi_epi32(low, high)};
    Metrics least;
    // Ways 0 1 4 5 lie in the first, 2 3 6 7 in the second.
    each<8>([&](auto way) TQ_LAMBDA {
      constexpr int kQuarter = (way & 1) | (way & 4) >> 1;
      const __m256i from = _mm256_permute4x64_epi64(sorted[(way & 2) / 2], kQuarter * 0x55);
      each<2>([&](auto v) TQ_LAMBDA {
        const __m256i sum = _mm256_adds_epu16(from, load_256(costs + 32 * way + 16 * v));
        least.at[v] = way == 0 ? sum : least_256(least.at[v], sum);
      });
    });
    return least;
  }
};

// 16 states in one vector; a way has one state before, which leads to all.
template <>
struct Avx2Paths<4> : CommonAvx2<4, 4> {
  static TQ_INLINE int least_state(const Metrics& sums) { return least_state_256<Avx2Paths>(sums); }

  TQ_INLINE Metrics step(const Metrics& sums, const uint16_t* costs) const {
    const __m256i half[2] = {_mm256_permute4x64_epi64(sums.at[0], 0x44), _mm256_permute4x64_epi64(sums.at[0], 0xEE)};
    __m256i least[4];
    each<16>([&](auto way) TQ_LAMBDA {
      const __m256i index = _mm256_set1_epi16(0x0100 + 0x0202 * (way & 7));
      const __m256i from = _mm256_shuffle_epi8(half[way / 8], index);
      const __m256i sum = _mm256_adds_epu16(from, load_256(costs + 16 * way));
      least[way & 3] = way < 4 ? sum : least_256(least[way & 3], sum);
    });
    return {{least_256(least_256(least[0], least[1]), least_256(least[2], least[3]))}};
  }
};

}  // namespace
}  // namespace tq
