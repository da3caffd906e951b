// Sixteen groups at a time with AVX-512 (F, BW, DQ, VL).
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "floats.h"
#include "unroll.h"

namespace tq {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  static constexpr int kRadix = 16;  // rows of butterflies that fit the registers
  static constexpr bool kFused = true;
  using F = __m512;
  using I = __m512i;
  using Mask = __mmask16;
  using PairMask = __mmask32;
  using Table = __m512;

  static TQ_INLINE F load(const float* from) { return _mm512_load_ps(from); }
  static TQ_INLINE void store(float* to, F value) { _mm512_store_ps(to, value); }
  static TQ_INLINE I load(const int32_t* from) { return _mm512_load_si512(from); }
  static TQ_INLINE void store(int32_t* to, I value) { _mm512_store_si512(to, value); }
  static TQ_INLINE F all(float value) { return _mm512_set1_ps(value); }
  static TQ_INLINE I all(int32_t value) { return _mm512_set1_epi32(value); }

  static TQ_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  static TQ_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static TQ_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static TQ_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  static TQ_INLINE F sqrt(F a) { return _mm512_sqrt_ps(a); }
  static TQ_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static TQ_INLINE F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }

  static TQ_INLINE Mask greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static TQ_INLINE F select(Mask where, F yes, F no) { return _mm512_mask_blend_ps(where, no, yes); }
  static TQ_INLINE I add_where(Mask where, I k, int32_t step) {
    return _mm512_mask_add_epi32(k, where, k, _mm512_set1_epi32(step));
  }
  static TQ_INLINE Table table(const float* entries) { return _mm512_loadu_ps(entries); }
  static TQ_INLINE F look_up(Table table, I k) { return _mm512_permutexvar_ps(k, table); }

  static TQ_INLINE F as_floats(I a) { return _mm512_castsi512_ps(a); }
  static TQ_INLINE I as_integers(F a) { return _mm512_castps_si512(a); }
  template <int Count>
  static TQ_INLINE I left(I a) { return _mm512_slli_epi32(a, Count); }
  template <int Count>
  static TQ_INLINE I right(I a) { return _mm512_srli_epi32(a, Count); }
  static TQ_INLINE I either(I a, I b) { return _mm512_or_si512(a, b); }
  static TQ_INLINE I both(I a, I b) { return _mm512_and_si512(a, b); }
  static TQ_INLINE I differ(I a, I b) { return _mm512_xor_si512(a, b); }

  // Memory that is not aligned; the first `width` words only.
  static TQ_INLINE I load_from(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static TQ_INLINE void store_to(uint8_t* to, I value) { _mm512_storeu_si512(to, value); }
  static TQ_INLINE I load_some(const uint8_t* from, int width) {
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << width) - 1), from);
  }
  static TQ_INLINE void store_some(uint8_t* to, I value, int width) {
    _mm512_mask_storeu_epi32(to, static_cast<__mmask16>((1u << width) - 1), value);
  }

  // Word j of vector i becomes word i of vector j.
  static TQ_INLINE void transpose(I (&row)[kLanes]) {
    I pair[kLanes], quad[kLanes], half[kLanes];
    each<8>([&](auto i) TQ_LAMBDA {
      pair[2 * i] = _mm512_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
      pair[2 * i + 1] = _mm512_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
    });
    each<4>([&](auto i) TQ_LAMBDA {
      quad[4 * i] = _mm512_unpacklo_epi64(pair[4 * i], pair[4 * i + 2]);
      quad[4 * i + 1] = _mm512_unpackhi_epi64(pair[4 * i], pair[4 * i + 2]);
      quad[4 * i + 2] = _mm512_unpacklo_epi64(pair[4 * i + 1], pair[4 * i + 3]);
      quad[4 * i + 3] = _mm512_unpackhi_epi64(pair[4 * i + 1], pair[4 * i + 3]);
    });
    each<4>([&](auto i) TQ_LAMBDA {
      half[i] = _mm512_shuffle_i32x4(quad[i], quad[4 + i], 0x88);
      half[4 + i] = _mm512_shuffle_i32x4(quad[i], quad[4 + i], 0xDD);
      half[8 + i] = _mm512_shuffle_i32x4(quad[8 + i], quad[12 + i], 0x88);
      half[12 + i] = _mm512_shuffle_i32x4(quad[8 + i], quad[12 + i], 0xDD);
    });
    each<4>([&](auto i) TQ_LAMBDA {
      row[i] = _mm512_shuffle_i32x4(half[i], half[8 + i], 0x88);
      row[8 + i] = _mm512_shuffle_i32x4(half[i], half[8 + i], 0xDD);
      row[4 + i] = _mm512_shuffle_i32x4(half[4 + i], half[12 + i], 0x88);
      row[12 + i] = _mm512_shuffle_i32x4(half[4 + i], half[12 + i], 0xDD);
    });
  }

  // The least magnitude so far, less one so that zero counts as the largest; the sign is shifted out.
  static TQ_INLINE I least_nonzero(I least, I bits) {
    return _mm512_min_epu32(least, _mm512_sub_epi32(_mm512_add_epi32(bits, bits), _mm512_set1_epi32(1)));
  }
  static TQ_INLINE I least_nonzero_pair(I least, I bits) {
    return _mm512_min_epu16(least, _mm512_sub_epi16(_mm512_add_epi16(bits, bits), _mm512_set1_epi16(1)));
  }
  static TQ_INLINE bool none_below(I least, float limit) {
    return _mm512_cmplt_epu32_mask(least, _mm512_set1_epi32(static_cast<int32_t>(2 * to_bits(limit) - 1))) == 0;
  }
  static TQ_INLINE bool no_pair_below(I least, float limit) {
    const int16_t bound = static_cast<int16_t>((to_bits(limit) >> 15) - 1);
    return _mm512_cmplt_epu16_mask(least, _mm512_set1_epi16(bound)) == 0;
  }

  static TQ_INLINE F from_half(I a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }
  static TQ_INLINE I to_halves(F low, F high) {
    const I even = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT));
    const I odd = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT));
    return either(even, left<16>(odd));
  }
  static TQ_INLINE I to_bfloats(F low, F high) {
    return _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(rounded(low), 16), rounded(high));
  }
  static TQ_INLINE I rounded(F value) {
    const I bits = as_integers(value);
    const I lowest = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), lowest);
  }

  static TQ_INLINE I round(F a) {
    return _mm512_cvt_roundps_epi32(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static TQ_INLINE I sum(I a, I b) { return _mm512_add_epi32(a, b); }
  static TQ_INLINE I absolute(I a) { return _mm512_abs_epi32(a); }
  static TQ_INLINE I positive(I a) {
    return _mm512_maskz_set1_epi32(_mm512_cmpgt_epi32_mask(a, _mm512_setzero_si512()), 1);
  }
  static TQ_INLINE PairMask pairs_greater(I a, I b) { return _mm512_cmpgt_epi16_mask(a, b); }
  static TQ_INLINE I pairs_select(PairMask where, I yes, I no) { return _mm512_mask_blend_epi16(where, no, yes); }
  static TQ_INLINE I pairs_dot(I a, I b) { return _mm512_madd_epi16(a, b); }
};

}  // namespace
}  // namespace tq
