// What the loops of a key-value cache need of lanes and of storage types.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "floats.h"
#include "lanes.h"

namespace tq {
namespace {

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint8_t Bytes64 __attribute__((vector_size(64)));

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

// One stage of butterflies whose partners are `kDistance` lanes apart: a sum in the first, a difference in the second.
template <int kDistance>
inline Floats stage(Floats value) {
  Integers partners;
  Words flips;
  for (int i = 0; i < kLanes; ++i) {
    partners[i] = i ^ kDistance;
    flips[i] = (i & kDistance) ? 0x80000000u : 0u;
  }
#if defined(__clang__)
  Floats other;
  for (int i = 0; i < kLanes; ++i) other[i] = value[i ^ kDistance];
#else
  const Floats other = __builtin_shuffle(value, partners);
#endif
  return other + (Floats)((Words)value ^ flips);
}

// The stages that stay within one vector of lanes.
inline Floats inner_stages(Floats value) {
  value = stage<2>(stage<1>(value));
  if constexpr (kLanes > 4) value = stage<4>(value);
  if constexpr (kLanes > 8) value = stage<8>(value);
  return value;
}

// Levels by their codes, as many as there are lanes. Few enough of them stay in registers.
template <int kBits>
class LookUp {
 public:
  explicit LookUp(const float* levels) : levels_(levels) {
#if defined(__AVX512F__)
    if constexpr (kBits <= 4) low_ = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << (1 << kBits)) - 1), levels);
    if constexpr (kBits == 5) low_ = _mm512_loadu_ps(levels), high_ = _mm512_loadu_ps(levels + 16);
#elif defined(__AVX2__)
    float padded[16] = {};
    if constexpr (kBits <= 4) std::memcpy(padded, levels, sizeof(float) << kBits);
    low_ = _mm256_loadu_ps(padded), high_ = _mm256_loadu_ps(padded + 8);
#endif
  }

  Floats operator()(const uint8_t* codes) const {
#if defined(__AVX512F__)
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    if constexpr (kBits <= 4) return (Floats)_mm512_permutexvar_ps(wide, low_);
    if constexpr (kBits == 5) return (Floats)_mm512_permutex2var_ps(low_, wide, high_);
#elif defined(__AVX2__)
    if constexpr (kBits <= 4) {
      const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
      const __m256 low = _mm256_permutevar8x32_ps(low_, wide), high = _mm256_permutevar8x32_ps(high_, wide);
      return (Floats)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(wide, 28)));
    }
#endif
    Floats found;
    for (int i = 0; i < kLanes; ++i) found[i] = levels_[codes[i]];
    return found;
  }

 private:
  const float* levels_;
#if defined(__AVX512F__)
  __m512 low_ = _mm512_setzero_ps(), high_ = _mm512_setzero_ps();
#elif defined(__AVX2__)
  __m256 low_, high_;
#endif
};

// NaN, which rounding would turn into another number, comes out as itself.
struct Bfloat16 {
  using Word = uint16_t;
  static float widen(Word word) { return from_bits(static_cast<uint32_t>(word) << 16); }
  static Word narrow(float value) {
    const Word rounded = float_to_bfloat(value);
    return value != value ? static_cast<Word>(0x7FC0) : rounded;
  }
};

struct Float16 {
  using Word = uint16_t;
  static float widen(Word word) { return half_to_float(word); }
  static Word narrow(float value) { return float_to_half(value); }
};

struct Float32 {
  using Word = float;
  static float widen(Word word) { return word; }
  static Word narrow(float value) { return value; }
};

}  // namespace
}  // namespace tq
