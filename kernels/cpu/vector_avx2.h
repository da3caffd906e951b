// Eight groups at a time with AVX2 and FMA.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "floats.h"
#include "unroll.h"

namespace tq {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  static constexpr int kRadix = 8;  // rows of butterflies that fit the registers
  static constexpr bool kFused = true;
  using F = __m256;
  using I = __m256i;
  using Mask = __m256;
  using PairMask = __m256i;
  struct Table {
    __m256 low, high;
  };

  static TQ_INLINE F load(const float* from) { return _mm256_load_ps(from); }
  static TQ_INLINE void store(float* to, F value) { _mm256_store_ps(to, value); }
  static TQ_INLINE I load(const int32_t* from) { return _mm256_load_si256(reinterpret_cast<const I*>(from)); }
  static TQ_INLINE void store(int32_t* to, I value) { _mm256_store_si256(reinterpret_cast<I*>(to), value); }
  static TQ_INLINE F all(float value) { return _mm256_set1_ps(value); }
  static TQ_INLINE I all(int32_t value) { return _mm256_set1_epi32(value); }

  static TQ_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  static TQ_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static TQ_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static TQ_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
  static TQ_INLINE F sqrt(F a) { return _mm256_sqrt_ps(a); }
  static TQ_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static TQ_INLINE F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }

  static TQ_INLINE Mask greater(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  static TQ_INLINE F select(Mask where, F yes, F no) { return _mm256_blendv_ps(no, yes, where); }
  static TQ_INLINE I add_where(Mask where, I k, int32_t step) {
    return _mm256_add_epi32(k, _mm256_and_si256(_mm256_castps_si256(where), _mm256_set1_epi32(step)));
  }
  static TQ_INLINE Table table(const float* entries) {
    return {_mm256_loadu_ps(entries), _mm256_loadu_ps(entries + 8)};
  }
  static TQ_INLINE F look_up(Table table, I k) {
    const F low = _mm256_permutevar8x32_ps(table.low, k), high = _mm256_permutevar8x32_ps(table.high, k);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(k, 28)));
  }

  static TQ_INLINE F as_floats(I a) { return _mm256_castsi256_ps(a); }
  static TQ_INLINE I as_integers(F a) { return _mm256_castps_si256(a); }
  template <int Count>
  static TQ_INLINE I left(I a) { return _mm256_slli_epi32(a, Count); }
  template <int Count>
  static TQ_INLINE I right(I a) { return _mm256_srli_epi32(a, Count); }
  static TQ_INLINE I either(I a, I b) { return _mm256_or_si256(a, b); }
  static TQ_INLINE I both(I a, I b) { return _mm256_and_si256(a, b); }
  static TQ_INLINE I differ(I a, I b) { return _mm256_xor_si256(a, b); }

  // Memory that is not aligned; the first `width` words only.
  static TQ_INLINE I load_from(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const I*>(from)); }
  static TQ_INLINE void store_to(uint8_t* to, I value) { _mm256_storeu_si256(reinterpret_cast<I*>(to), value); }
  static TQ_INLINE I load_some(const uint8_t* from, int width) {
    return _mm256_maskload_epi32(reinterpret_cast<const int*>(from), first_words(width));
  }
  static TQ_INLINE void store_some(uint8_t* to, I value, int width) {
    _mm256_maskstore_epi32(reinterpret_cast<int*>(to), first_words(width), value);
  }
  static TQ_INLINE I first_words(int width) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(width), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  // Word j of vector i becomes word i of vector j.
  static TQ_INLINE void transpose(I (&row)[kLanes]) {
    I pair[kLanes], quad[kLanes];
    each<4>([&](auto i) TQ_LAMBDA {
      pair[2 * i] = _mm256_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
      pair[2 * i + 1] = _mm256_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
    });
    each<2>([&](auto i) TQ_LAMBDA {
      quad[4 * i] = _mm256_unpacklo_epi64(pair[4 * i], pair[4 * i + 2]);
      quad[4 * i + 1] = _mm256_unpackhi_epi64(pair[4 * i], pair[4 * i + 2]);
      quad[4 * i + 2] = _mm256_unpacklo_epi64(pair[4 * i + 1], pair[4 * i + 3]);
      quad[4 * i + 3] = _mm256_unpackhi_epi64(pair[4 * i + 1], pair[4 * i + 3]);
    });
    each<4>([&](auto i) TQ_LAMBDA {
      row[i] = _mm256_permute2x128_si256(quad[i], quad[4 + i], 0x20);
      row[4 + i] = _mm256_permute2x128_si256(quad[i], quad[4 + i], 0x31);
    });
  }

  // The least magnitude so far, less one so that zero counts as the largest; the sign is shifted out.
  static TQ_INLINE I least_nonzero(I least, I bits) {
    return _mm256_min_epu32(least, _mm256_sub_epi32(_mm256_add_epi32(bits, bits), _mm256_set1_epi32(1)));
  }
  static TQ_INLINE I least_nonzero_pair(I least, I bits) {
    return _mm256_min_epu16(least, _mm256_sub_epi16(_mm256_add_epi16(bits, bits), _mm256_set1_epi16(1)));
  }
  static TQ_INLINE bool none_below(I least, float limit) {
    const I bound = _mm256_set1_epi32(static_cast<int32_t>(2 * to_bits(limit) - 1));
    return _mm256_movemask_epi8(_mm256_cmpeq_epi32(_mm256_min_epu32(least, bound), bound)) == -1;
  }
  static TQ_INLINE bool no_pair_below(I least, float limit) {
    const I bound = _mm256_set1_epi16(static_cast<int16_t>((to_bits(limit) >> 15) - 1));
    return _mm256_movemask_epi8(_mm256_cmpeq_epi16(_mm256_min_epu16(least, bound), bound)) == -1;
  }

  static TQ_INLINE F from_half(I a) {
    const I packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, a), 0xD8);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
  }
  static TQ_INLINE I to_halves(F low, F high) {
    const I even = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT));
    const I odd = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT));
    return either(even, left<16>(odd));
  }
  static TQ_INLINE I to_bfloats(F low, F high) {
    return _mm256_blend_epi16(_mm256_srli_epi32(rounded(low), 16), rounded(high), 0xAA);
  }
  static TQ_INLINE I rounded(F value) {
    const I bits = as_integers(value);
    const I lowest = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), lowest);
  }

  static TQ_INLINE I round(F a) { return _mm256_cvtps_epi32(a); }
  static TQ_INLINE I sum(I a, I b) { return _mm256_add_epi32(a, b); }
  static TQ_INLINE I absolute(I a) { return _mm256_abs_epi32(a); }
  static TQ_INLINE I positive(I a) { return _mm256_srli_epi32(_mm256_cmpgt_epi32(a, _mm256_setzero_si256()), 31); }
  static TQ_INLINE PairMask pairs_greater(I a, I b) { return _mm256_cmpgt_epi16(a, b); }
  static TQ_INLINE I pairs_select(PairMask where, I yes, I no) { return _mm256_blendv_epi8(no, yes, where); }
  static TQ_INLINE I pairs_dot(I a, I b) { return _mm256_madd_epi16(a, b); }
};

}  // namespace
}  // namespace tq
