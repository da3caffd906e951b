// Four groups at a time with NEON (AArch64).
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "floats.h"
#include "unroll.h"

namespace tq {
namespace {

struct Neon {
  static constexpr int kLanes = 4;
  static constexpr int kRadix = 16;  // rows of butterflies that fit the registers
  static constexpr bool kFused = true;
  using F = float32x4_t;
  using I = int32x4_t;
  using Mask = uint32x4_t;
  using PairMask = uint16x8_t;
  using Table = uint8x16x4_t;

  static TQ_INLINE F load(const float* from) { return vld1q_f32(from); }
  static TQ_INLINE void store(float* to, F value) { vst1q_f32(to, value); }
  static TQ_INLINE I load(const int32_t* from) { return vld1q_s32(from); }
  static TQ_INLINE void store(int32_t* to, I value) { vst1q_s32(to, value); }
  static TQ_INLINE F all(float value) { return vdupq_n_f32(value); }
  static TQ_INLINE I all(int32_t value) { return vdupq_n_s32(value); }

  static TQ_INLINE F add(F a, F b) { return vaddq_f32(a, b); }
  static TQ_INLINE F sub(F a, F b) { return vsubq_f32(a, b); }
  static TQ_INLINE F mul(F a, F b) { return vmulq_f32(a, b); }
  static TQ_INLINE F div(F a, F b) { return vdivq_f32(a, b); }
  static TQ_INLINE F sqrt(F a) { return vsqrtq_f32(a); }
  static TQ_INLINE F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static TQ_INLINE F fnma(F a, F b, F c) { return vfmsq_f32(c, a, b); }

  static TQ_INLINE Mask greater(F a, F b) { return vcgtq_f32(a, b); }
  static TQ_INLINE F select(Mask where, F yes, F no) { return vbslq_f32(where, yes, no); }
  static TQ_INLINE I add_where(Mask where, I k, int32_t step) {
    return vaddq_s32(k, vandq_s32(vreinterpretq_s32_u32(where), vdupq_n_s32(step)));
  }
  static TQ_INLINE Table table(const float* entries) { return vld1q_u8_x4(reinterpret_cast<const uint8_t*>(entries)); }
  static TQ_INLINE F look_up(Table table, I k) {
    const uint32x4_t entry = vreinterpretq_u32_s32(vandq_s32(k, vdupq_n_s32(15)));
    const uint32x4_t bytes = vmlaq_u32(vdupq_n_u32(0x03020100), entry, vdupq_n_u32(0x04040404));
    return vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)));
  }

  static TQ_INLINE F as_floats(I a) { return vreinterpretq_f32_s32(a); }
  static TQ_INLINE I as_integers(F a) { return vreinterpretq_s32_f32(a); }
  template <int Count>
  static TQ_INLINE I left(I a) { return vshlq_n_s32(a, Count); }
  template <int Count>
  static TQ_INLINE I right(I a) {
    if constexpr (Count == 0) return a;
    else return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), Count));
  }
  static TQ_INLINE I either(I a, I b) { return vorrq_s32(a, b); }
  static TQ_INLINE I both(I a, I b) { return vandq_s32(a, b); }
  static TQ_INLINE I differ(I a, I b) { return veorq_s32(a, b); }

  // Memory that is not aligned; the first `width` words only.
  static TQ_INLINE I load_from(const uint8_t* from) { return vreinterpretq_s32_u8(vld1q_u8(from)); }
  static TQ_INLINE void store_to(uint8_t* to, I value) { vst1q_u8(to, vreinterpretq_u8_s32(value)); }
  static TQ_INLINE I load_some(const uint8_t* from, int width) {
    int32_t word[kLanes] = {};
    std::memcpy(word, from, static_cast<size_t>(width) * sizeof(int32_t));
    return vld1q_s32(word);
  }
  static TQ_INLINE void store_some(uint8_t* to, I value, int width) {
    int32_t word[kLanes];
    vst1q_s32(word, value);
    std::memcpy(to, word, static_cast<size_t>(width) * sizeof(int32_t));
  }

  // Word j of vector i becomes word i of vector j.
  static TQ_INLINE void transpose(I (&row)[kLanes]) {
    const int64x2_t a = vreinterpretq_s64_s32(vtrn1q_s32(row[0], row[1]));
    const int64x2_t b = vreinterpretq_s64_s32(vtrn2q_s32(row[0], row[1]));
    const int64x2_t c = vreinterpretq_s64_s32(vtrn1q_s32(row[2], row[3]));
    const int64x2_t d = vreinterpretq_s64_s32(vtrn2q_s32(row[2], row[3]));
    row[0] = vreinterpretq_s32_s64(vtrn1q_s64(a, c));
    row[1] = vreinterpretq_s32_s64(vtrn1q_s64(b, d));
    row[2] = vreinterpretq_s32_s64(vtrn2q_s64(a, c));
    row[3] = vreinterpretq_s32_s64(vtrn2q_s64(b, d));
  }

  // The least magnitude so far, less one so that zero counts as the largest; the sign is shifted out.
  static TQ_INLINE I least_nonzero(I least, I bits) {
    const uint32x4_t twice = vreinterpretq_u32_s32(vaddq_s32(bits, bits));
    return vreinterpretq_s32_u32(vminq_u32(vreinterpretq_u32_s32(least), vsubq_u32(twice, vdupq_n_u32(1))));
  }
  static TQ_INLINE I least_nonzero_pair(I least, I bits) {
    const uint16x8_t value = vreinterpretq_u16_s32(bits), twice = vaddq_u16(value, value);
    return vreinterpretq_s32_u16(vminq_u16(vreinterpretq_u16_s32(least), vsubq_u16(twice, vdupq_n_u16(1))));
  }
  static TQ_INLINE bool none_below(I least, float limit) {
    return vminvq_u32(vreinterpretq_u32_s32(least)) >= 2 * to_bits(limit) - 1;
  }
  static TQ_INLINE bool no_pair_below(I least, float limit) {
    return vminvq_u16(vreinterpretq_u16_s32(least)) >= (to_bits(limit) >> 15) - 1;
  }

  static TQ_INLINE F from_half(I a) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(vreinterpretq_u32_s32(a))));
  }
  static TQ_INLINE I to_halves(F low, F high) {
    const uint32x4_t even = vmovl_u16(vreinterpret_u16_f16(vcvt_f16_f32(low)));
    const uint32x4_t odd = vmovl_u16(vreinterpret_u16_f16(vcvt_f16_f32(high)));
    return vreinterpretq_s32_u32(vsliq_n_u32(even, odd, 16));
  }
  static TQ_INLINE I to_bfloats(F low, F high) {
    return vreinterpretq_s32_u32(vsriq_n_u32(rounded(high), rounded(low), 16));
  }
  static TQ_INLINE uint32x4_t rounded(F value) {
    const uint32x4_t bits = vreinterpretq_u32_f32(value);
    const uint32x4_t lowest = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    return vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), lowest);
  }

  static TQ_INLINE I round(F a) { return vcvtnq_s32_f32(a); }
  static TQ_INLINE I sum(I a, I b) { return vaddq_s32(a, b); }
  static TQ_INLINE I absolute(I a) { return vabsq_s32(a); }
  static TQ_INLINE I positive(I a) {
    return vreinterpretq_s32_u32(vshrq_n_u32(vcgtq_s32(a, vdupq_n_s32(0)), 31));
  }
  static TQ_INLINE PairMask pairs_greater(I a, I b) {
    return vcgtq_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
  }
  static TQ_INLINE I pairs_select(PairMask where, I yes, I no) {
    return vreinterpretq_s32_s16(vbslq_s16(where, vreinterpretq_s16_s32(yes), vreinterpretq_s16_s32(no)));
  }
  static TQ_INLINE I pairs_dot(I a, I b) {
    const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
    return vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
  }
};

}  // namespace
}  // namespace tq
