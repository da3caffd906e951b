// Vectors of the trellis kernels: one group lies along the lanes. The compiler's generic vectors take the width of the
// instruction set.
#pragma once

#include "floats.h"
#include "lanes.h"
#include "unroll.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace tq {
namespace {

typedef int16_t Shorts __attribute__((vector_size(kLaneBytes)));
typedef int16_t HalfShorts __attribute__((vector_size(kLaneBytes / 2)));  // as many as there are Floats
typedef uint16_t HalfWords __attribute__((vector_size(kLaneBytes / 2)));

constexpr int kShorts = kLaneBytes / 2;

template <class Vector>
TQ_INLINE Vector read(const void* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class Vector>
TQ_INLINE void write(void* to, Vector value) {
  std::memcpy(to, &value, sizeof value);
}

// Between 16 and 32 bits: compilers' own conversions of vectors are slow ones.
TQ_INLINE Integers widened(HalfShorts value) {
#if defined(__AVX512F__)
  return (Integers)_mm512_cvtepi16_epi32((__m256i)value);
#elif defined(__AVX2__)
  return (Integers)_mm256_cvtepi16_epi32((__m128i)value);
#else
  return __builtin_convertvector(value, Integers);
#endif
}

TQ_INLINE Words widened(HalfWords value) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepu16_epi32((__m256i)value);
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu16_epi32((__m128i)value);
#else
  return __builtin_convertvector(value, Words);
#endif
}

// Values of 16 bits.
TQ_INLINE HalfWords narrowed(Words value) {
#if defined(__AVX512F__)
  return (HalfWords)_mm512_cvtepi32_epi16((__m512i)value);
#elif defined(__AVX2__)
  const __m256i halves = _mm256_packus_epi32((__m256i)value, (__m256i)value);
  return (HalfWords)_mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0x08));
#else
  return __builtin_convertvector(value, HalfWords);
#endif
}

// Lane i takes what lane i ^ Distance holds.
template <int Distance, class Vector, class Whole, int... I>
TQ_INLINE Vector swapped_of(Vector value, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(value, value, (I ^ Distance)...);
#else
  return __builtin_shuffle(value, Whole{(I ^ Distance)...});
#endif
}

template <int Distance>
TQ_INLINE Floats swapped(Floats value) {
  return swapped_of<Distance, Floats, Integers>(value, std::make_integer_sequence<int, kLanes>{});
}

template <int Distance>
TQ_INLINE Words swapped(Words value) {
  return swapped_of<Distance, Words, Integers>(value, std::make_integer_sequence<int, kLanes>{});
}

template <int Distance>
TQ_INLINE Shorts swapped(Shorts value) {
  return swapped_of<Distance, Shorts, Shorts>(value, std::make_integer_sequence<int, kShorts>{});
}

// The lanes whose number has bit Distance set, negated.
template <int Distance, int... I>
TQ_INLINE Floats negated_of(Floats value, std::integer_sequence<int, I...>) {
  return (Floats)((Words)value ^ Words{((I & Distance) ? 0x80000000u : 0u)...});
}

template <int Distance, int... I>
TQ_INLINE Shorts negated_of(Shorts value, std::integer_sequence<int, I...>) {
  return value * Shorts{static_cast<int16_t>((I & Distance) ? -1 : 1)...};
}

template <int Distance>
TQ_INLINE Floats negated(Floats value) {
  return negated_of<Distance>(value, std::make_integer_sequence<int, kLanes>{});
}

template <int Distance>
TQ_INLINE Shorts negated(Shorts value) {
  return negated_of<Distance>(value, std::make_integer_sequence<int, kShorts>{});
}

// The Walsh-Hadamard transform of N vectors of LANES lanes without a factor, distances 1, 2, 4, ...
template <int LANES, int Distance = 1, class Vector, int N>
TQ_INLINE void transform(Vector (&value)[N]) {
  if constexpr (Distance < LANES) {
    each<N>([&](auto i) TQ_LAMBDA { value[i] = swapped<Distance>(value[i]) + negated<Distance>(value[i]); });
    transform<LANES, 2 * Distance>(value);
  } else if constexpr (Distance < LANES * N) {
    constexpr int kApart = Distance / LANES;
    each<N>([&](auto i) TQ_LAMBDA {
      if constexpr ((i & kApart) == 0) {
        const Vector left = value[i], right = value[i + kApart];
        value[i] = left + right;
        value[i + kApart] = left - right;
      }
    });
    transform<LANES, 2 * Distance>(value);
  }
}

// All lanes joined, in every lane: the upper half to the lower one, and so on.
template <int Distance = kLanes / 2, class Vector, class Join>
TQ_INLINE Vector joined(Vector value, Join join) {
  if constexpr (Distance == 0) return value;
  else return joined<Distance / 2>(join(value, swapped<Distance>(value)), join);
}

}  // namespace
}  // namespace tq
