// What the loops of uniform quantisation need of widths and of storage types. Nothing branches, so that compilers
// vectorise it.
#pragma once

#include "floats.h"
#include "lanes.h"

namespace tq {
namespace {

constexpr float kGreatestHalf = 65504.0f;
constexpr float kLeastHalf = 0x1p-24f;
constexpr float kUnits = 12582912.0f;  // 1.5 * 2^23: floats near it are integers

// The integer nearest to a number, of two the even one. Magnitudes are below 2^22.
inline int32_t nearest(float value) { return static_cast<int32_t>(to_bits(value + kUnits) - to_bits(kUnits)); }

// What a width means. kDivisors: what the greatest magnitude of a group is divided by; the first is absmax's rule.
struct EightBits {
  static constexpr bool kSigned = false;  // whether scales have a sign
  static constexpr float kDivisors[] = {127.0f, 126.5f, 126.0f, 125.5f, 125.0f, 124.5f, 124.0f, 123.5f,
                                        123.0f, 122.5f, 122.0f, 121.5f, 121.0f, 120.5f, 120.0f, 119.5f};
  // No scale is less than the greatest magnitude / 127, so no quotient is beyond 127.
  static Floats clamped(Floats quotients) { return quotients; }
  static int32_t clamped(int32_t number) { return number; }
};

struct FourBits {
  static constexpr bool kSigned = true;
  static constexpr float kDivisors[] = {8.0f, 7.25f, 7.5f, 7.75f, 8.25f, 8.5f, 8.75f,  9.0f,
                                        9.25f, 9.5f, 9.75f, 10.0f, 10.25f, 10.5f, 10.75f, 11.0f};
  static Floats clamped(Floats quotients) { return least(most(quotients, all(-8.0f)), all(7.0f)); }
  static int32_t clamped(int32_t number) {
    const int32_t lifted = number > -8 ? number : -8;
    return lifted < 7 ? lifted : 7;
  }
};

// A storage type. Integer: its words as integers that are ordered as the numbers are, from zero up. kGreatest: the
// greatest magnitude that is taken where it does not follow from the scale, as float. narrow: to nearest even.
struct Bfloat16 {
  using Integer = int16_t;
  static constexpr float kGreatest = kGreatestHalf * 127.0f;
  static float widen(Integer word) { return from_bits(static_cast<uint32_t>(static_cast<uint16_t>(word)) << 16); }
  static Integer narrow(float value) {
    const uint32_t bits = to_bits(value);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<Integer>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
  }
};

struct Float16 {
  using Integer = int16_t;
  static constexpr float kGreatest = 32752.0f;
  static float widen(Integer word) { return half_to_float(static_cast<uint16_t>(word)); }
  // Added to a power of two 2^13 times as great, a number keeps the eleven bits of a half, fewer below 2^-14.
  static Integer narrow(float value) {
    const uint32_t bits = to_bits(value), magnitude = bits & 0x7FFFFFFFu;
    const uint32_t finite = magnitude < 0x47800000u ? magnitude : 0x47800000u;  // 2^16, which stands for infinity
    const uint32_t exponent = finite & 0x7F800000u;
    const float power = from_bits((exponent > 0x38800000u ? exponent : 0x38800000u) + (13u << 23));
    // Exponents are moved by a multiplication with 2^-112, which is exact and takes care of denormals.
    const uint32_t half = to_bits(((from_bits(finite) + power) - power) * 0x1p-112f) >> 13;
    const uint32_t quiet = static_cast<uint32_t>(magnitude > 0x7F800000u) << 9;  // makes infinity a NaN
    return static_cast<Integer>(half | quiet | ((bits >> 16) & 0x8000u));
  }
};

struct Float32 {
  using Integer = int32_t;
  static constexpr float kGreatest = kGreatestHalf * 127.0f;
  static float widen(Integer word) { return from_bits(static_cast<uint32_t>(word)); }
  static Integer narrow(float value) { return static_cast<Integer>(to_bits(value)); }
};

template <class Type, class Bits>
constexpr float greatest_magnitude() {
  const float of_scale = kGreatestHalf * Bits::kDivisors[0];
  return Type::kGreatest < of_scale ? Type::kGreatest : of_scale;
}

}  // namespace
}  // namespace tq
