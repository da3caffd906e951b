// Steps through the trellis with AVX-512: every 32 sums of 16 bits are one vector.
#pragma once

#include <immintrin.h>

#include "trellis_paths.h"

namespace tq {
namespace {

template <int N>
struct SumsAvx512 {
  __m512i at[N];
};

TQ_INLINE __m512i load_512(const void* from) { return _mm512_load_si512(from); }
TQ_INLINE __m512i least_512(__m512i a, __m512i b) { return _mm512_min_epu16(a, b); }

// The least of eight.
TQ_INLINE __m512i least_512(const __m512i (&sums)[8]) {
  const __m512i low = least_512(least_512(sums[0], sums[1]), least_512(sums[2], sums[3]));
  const __m512i high = least_512(least_512(sums[4], sums[5]), least_512(sums[6], sums[7]));
  return least_512(low, high);
}

// The least of all lanes.
TQ_INLINE __m128i least_lane_512(__m512i sums) {
  const __m256i half = _mm256_min_epu16(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
  return _mm_minpos_epu16(_mm_min_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}

// What the numbers of bits share.
template <int BITS, int VECTORS, int TOGETHER>
struct CommonAvx512 {
  using Metrics = SumsAvx512<VECTORS>;
  static constexpr int kTogether = TOGETHER;
  static constexpr int kStates = Trellis<BITS>::kStates;

  static constexpr int place(int way, int state) { return way * kStates + state; }

  TQ_INLINE Metrics bare(Metrics sums) const {
    const __m512i mask = _mm512_set1_epi16(static_cast<int16_t>(-Trellis<BITS>::kWays));
    each<VECTORS>([&](auto v) TQ_LAMBDA { sums.at[v] = _mm512_and_si512(sums.at[v], mask); });
    return sums;
  }

  TQ_INLINE Metrics lowered(Metrics sums) const {
    __m512i joined = sums.at[0];
    each<VECTORS - 1>([&](auto v) TQ_LAMBDA { joined = least_512(joined, sums.at[v + 1]); });
    const __m512i least = _mm512_broadcastw_epi16(least_lane_512(joined));
    each<VECTORS>([&](auto v) TQ_LAMBDA { sums.at[v] = _mm512_sub_epi16(sums.at[v], least); });
    return sums;
  }

  TQ_INLINE void keep(const Metrics& first, const Metrics& second, uint8_t* ways) const {
    const __m512i low = _mm512_set1_epi16(0xFF);
    each<VECTORS>([&](auto v) TQ_LAMBDA {
      // (first & low) | second << 8
      const __m512i both = _mm512_ternarylogic_epi32(first.at[v], low, _mm512_slli_epi16(second.at[v], 8), 0xEA);
      if constexpr (kStates < 32) _mm256_store_si256(reinterpret_cast<__m256i*>(ways), _mm512_castsi512_si256(both));
      else _mm512_store_si512(ways + 64 * v, both);
    });
  }

  static TQ_INLINE int least_state(const Metrics& sums) {
    alignas(64) uint16_t at[32 * VECTORS];
    each<VECTORS>([&](auto v) TQ_LAMBDA { _mm512_store_si512(at + 32 * v, sums.at[v]); });
    int least = 0;
    for (int state = 1; state < kStates; ++state) least = at[state] < at[least] ? state : least;
    return least;
  }
};

template <int BITS>
struct Avx512Paths;

// 64 states in two vectors; a way has 16 states before, each leading to four.
template <>
struct Avx512Paths<2> : CommonAvx512<2, 2, 4> {
  __m512i before[4];

  Avx512Paths() {
    alignas(64) uint16_t index[32];
    each<4>([&](auto way) TQ_LAMBDA {
      for (int state = 0; state < 32; ++state) index[state] = static_cast<uint16_t>((state * 4 + way) % 64);
      before[way] = load_512(index);
    });
  }

  TQ_INLINE Metrics step(const Metrics& sums, const uint16_t* costs) const {
    __m512i low[4], high[4];
    each<4>([&](auto way) TQ_LAMBDA {
      const __m512i from = _mm512_permutex2var_epi16(sums.at[0], before[way], sums.at[1]);
      low[way] = _mm512_adds_epu16(from, load_512(costs + 64 * way));
      high[way] = _mm512_adds_epu16(from, load_512(costs + 64 * way + 32));
    });
    return {{least_512(least_512(low[0], low[1]), least_512(low[2], low[3])),
             least_512(least_512(high[0], high[1]), least_512(high[2], high[3]))}};
  }
};

// 32 states in one vector; a way has four states before, way + 8 * i, each leading to eight. They are brought together
// first, because many processors move words far slower than groups of four.
template <>
struct Avx512Paths<3> : CommonAvx512<3, 1, 8> {
  __m512i fours, before[8];

  Avx512Paths() {
    alignas(64) uint16_t index[32];
    for (int i = 0; i < 32; ++i) index[i] = static_cast<uint16_t>(i / 4 + 8 * (i % 4));
    fours = load_512(index);
    each<8>([&](auto way) TQ_LAMBDA { before[way] = _mm512_set1_epi64(way); });
  }

  TQ_INLINE Metrics step(const Metrics& sums, const uint16_t* costs) const {
    const __m512i sorted = _mm512_permutexvar_epi16(fours, sums.at[0]);
    __m512i sum[8];
    each<8>([&](auto way) TQ_LAMBDA {
      sum[way] = _mm512_adds_epu16(_mm512_permutexvar_epi64(before[way], sorted), load_512(costs + 32 * way));
    });
    return {{least_512(sum)}};
  }
};

// 16 states in the lower half of a vector; a way has one state before. The upper half takes the ways from 8 on.
template <>
struct Avx512Paths<4> : CommonAvx512<4, 1, 8> {
  __m512i before[8];

  static constexpr int place(int way, int state) { return way % 8 * 32 + way / 8 * 16 + state; }

  Avx512Paths() {
    each<8>([&](auto way) TQ_LAMBDA { before[way] = _mm512_set1_epi16(0x0100 + 0x0202 * way); });
  }

  TQ_INLINE Metrics step(const Metrics& sums, const uint16_t* costs) const {
    const __m512i halves = _mm512_shuffle_i64x2(sums.at[0], sums.at[0], 0x50);
    __m512i sum[8];
    each<8>([&](auto way) TQ_LAMBDA {
      sum[way] = _mm512_adds_epu16(_mm512_shuffle_epi8(halves, before[way]), load_512(costs + 32 * way));
    });
    const __m512i least = least_512(sum);
    return {{least_512(least, _mm512_shuffle_i64x2(least, least, 0x4E))}};
  }
};

}  // namespace
}  // namespace tq
