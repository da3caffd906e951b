// Conversions between the storage types and float, value by value, denormals kept.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace tq {
namespace {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t rest = static_cast<uint32_t>(half & 0x7FFF) << 13;
  // Exponents are moved by a multiplication with 2^112, which is exact and takes care of denormals.
  const uint32_t moved = to_bits(from_bits(rest) * from_bits(0x77800000));
  const uint32_t infinite = (half & 0x7C00) == 0x7C00 ? 0x7F800000u : 0u;
  return from_bits(sign | moved | infinite);
}

inline uint16_t float_to_half(float value) {
  const uint32_t bits = to_bits(value);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  if (magnitude > 0x7F800000) return sign | 0x7E00;
  if (magnitude >= 0x477FF000) return sign | 0x7C00;  // 65520 and more round to infinity
  if (magnitude < 0x38800000) {
    // Below 2^-14 a half is a multiple of 2^-24; adding 0.5 rounds there, to nearest even.
    const uint32_t rounded = to_bits(from_bits(magnitude) + 0.5f) - 0x3F000000;
    return sign | static_cast<uint16_t>(rounded);
  }
  const uint32_t even = (magnitude >> 13) & 1;
  return sign | static_cast<uint16_t>((magnitude - 0x38000000 + 0xFFF + even) >> 13);
}

// A NaN must come in its quiet form with an empty payload, as arithmetic makes it, or it would round to something else.
inline uint16_t float_to_bfloat(float value) {
  const uint32_t bits = to_bits(value);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

}  // namespace
}  // namespace tq
