// FP4 E2M1 weights with one scale a group: the loops, which compilers vectorise for every instruction set. The rules
// are told in tq_kernels/float4.py.
//
// Left out: threads, and what an argument may be. Loops hold no branches: both sides of every choice are computed.
#pragma once

#include "float4_interface.h"
#include "floats.h"

namespace tq {
namespace {

constexpr uint32_t kMagnitude = 0x7FFFFFFF;
constexpr int32_t kSix = 0x40C00000;

// The exponent, biased, of a magnitude after a quarter of its power of two is added; 0 stands for denormals.
inline int32_t raised(int32_t magnitude) {
  return static_cast<int32_t>((static_cast<uint32_t>(magnitude) + 0x200000u) >> 23);
}

// What the loops need of a storage type. kVanishes: the bits, as float32, of the greatest magnitude that the type
// rounds to zero. kBeyond: the least exponent that it has not. kVoidByte: the E8M0 scale where the exponent is 0.
struct Bfloat16 {
  using Word = uint16_t;
  static constexpr int32_t kVanishes = 0x00008000, kBeyond = 255, kVoidByte = 0;
  static float widen(Word word) { return from_bits(static_cast<uint32_t>(word) << 16); }
  static float rounded(float value) { return widen(float_to_bfloat(value)); }
  static int32_t exponent(int32_t magnitude) { return raised(magnitude); }
};

struct Float16 {
  using Word = uint16_t;
  static constexpr int32_t kVanishes = 0x33000000, kBeyond = 143, kVoidByte = 127;
  static float widen(Word word) { return half_to_float(word); }
  static float rounded(float value) { return widen(float_to_half(value)); }
  // Denormal halves are raised as the integers that they are stored as: from three quarters on they become normal.
  static int32_t exponent(int32_t magnitude) {
    constexpr int32_t kLeastNormal = 113 << 23;
    if (magnitude >= kLeastNormal) return raised(magnitude);
    return magnitude >= kLeastNormal - 0x400000 ? 113 : 0;
  }
};

struct Float32 {
  using Word = uint32_t;
  static constexpr int32_t kVanishes = 0, kBeyond = 255, kVoidByte = 0;
  static float widen(Word word) { return from_bits(word); }
  static float rounded(float value) { return value; }
  static int32_t exponent(int32_t magnitude) { return raised(magnitude); }
};

// The byte of a scale, what it divides by, and whether the group is refused.
struct Float4Scale {
  uint8_t byte;
  float divisor;
  bool refused;
};

// E8M0: a byte is the exponent of a float, 0 of a denormal one.
inline float power_of_two(uint8_t byte) {
  return from_bits(byte == 0 ? 0x00400000u : static_cast<uint32_t>(byte) << 23);
}

// Numbers reach to 4 * 1.5, so the exponent of a scale is two below that of the greatest magnitude.
template <class Type>
Float4Scale mx_scale(int32_t absmax, float) {
  const int32_t exponent = Type::exponent(absmax);
  const uint8_t least = static_cast<uint8_t>(exponent > 2 ? exponent - 2 : 0);
  const uint8_t byte = exponent == 0 ? static_cast<uint8_t>(Type::kVoidByte) : least;
  return {byte, power_of_two(byte), exponent >= Type::kBeyond};
}

// E4M3 to nearest even, of a number that is not negative; 448 for all that is greater.
inline uint8_t float8_code(float positive) {
  const float value = positive < 448.0f ? positive : 448.0f;
  const int32_t given = static_cast<int32_t>(to_bits(value) & 0x7F800000u);
  const int32_t exponent = given > (121 << 23) ? given : 121 << 23;
  const float magic = from_bits(static_cast<uint32_t>(exponent + (20 << 23)));
  const int32_t significand = static_cast<int32_t>(to_bits(value + magic) - to_bits(magic));
  return static_cast<uint8_t>((exponent >> 20) - (121 << 3) + significand);
}

// Exponents are moved by a multiplication with 2^120, which is exact and takes care of denormals.
inline float float8_value(uint8_t code) {
  const uint32_t rest = static_cast<uint32_t>(code & 0x7F) << 20;
  return from_bits(rest | static_cast<uint32_t>(code & 0x80) << 24) * 0x1p120f;
}

template <class Type>
Float4Scale nv_scale(int32_t absmax, float global_scale) {
  constexpr uint8_t kEighth = 0x20;  // stands where a scale would be zero
  const float local = Type::rounded(from_bits(static_cast<uint32_t>(absmax)) / 6.0f);
  const uint8_t code = float8_code(global_scale * local);
  const uint8_t byte = code == 0 ? kEighth : code;
  return {byte, float8_value(byte) / global_scale, absmax >= 0x7F800000};
}

// The greater and the lesser of two, without a comparison that compilers make a jump of.
inline int32_t most(int32_t a, int32_t b) { return b + ((a - b) & ~((a - b) >> 31)); }
inline int32_t least(int32_t a, int32_t b) { return b + ((a - b) & ((a - b) >> 31)); }

// E2M1 to nearest even, at most 6. A magnitude of at most kVanishes, as bits, loses its sign.
template <int32_t kVanishes>
inline uint32_t float4_code(float quotient) {
  const uint32_t bits = to_bits(quotient);
  const int32_t magnitude = static_cast<int32_t>(bits & kMagnitude);
  const int32_t value = least(magnitude, kSix);
  const int32_t exponent = most(value & 0x7F800000, 127 << 23);
  const float magic = from_bits(static_cast<uint32_t>(exponent + (22 << 23)));
  const float sum = from_bits(static_cast<uint32_t>(value)) + magic;
  const uint32_t code = static_cast<uint32_t>(exponent >> 22) - (127u << 1) + (to_bits(sum) - to_bits(magic));
  const uint32_t kept = static_cast<uint32_t>((kVanishes - magnitude) >> 31);
  return code | ((bits >> 28) & 8u & kept);
}

template <class Type, int kGroup, int32_t kVanishes, Float4Scale (*scale_of)(int32_t, float)>
int64_t encode_groups(const Float4Encode& job) {
  for (int64_t group = 0; group < job.groups; ++group) {
    typename Type::Word words[kGroup];
    std::memcpy(words, job.weight + group * static_cast<int64_t>(sizeof words), sizeof words);
    float values[kGroup];
    int32_t absmax = 0;
    for (int i = 0; i < kGroup; ++i) values[i] = Type::widen(words[i]);
    for (int i = 0; i < kGroup; ++i) {
      const int32_t magnitude = static_cast<int32_t>(to_bits(values[i]) & kMagnitude);
      absmax = magnitude > absmax ? magnitude : absmax;
    }
    const Float4Scale scale = scale_of(absmax, job.global_scale);
    if (scale.refused) return group;
    uint32_t codes[kGroup];
    for (int i = 0; i < kGroup; ++i) codes[i] = float4_code<kVanishes>(values[i] / scale.divisor);
    uint8_t* packed = job.codes + group * (kGroup / 2);
    for (int i = 0; i < kGroup / 2; ++i) packed[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
    job.scales[group] = scale.byte;
  }
  return -1;
}

inline float float4_value(uint32_t code) {
  const uint32_t magnitude = (code & 7u) << 22;
  // As float8_value, with 2^126.
  return from_bits(magnitude | (code & 8u) << 28) * 0x1p126f;
}

inline float mx_multiplier(uint8_t byte, float) { return power_of_two(byte); }

inline float nv_multiplier(uint8_t byte, float global_scale) { return float8_value(byte) / global_scale; }

template <int kGroup, float (*multiplier_of)(uint8_t, float)>
void decode_groups(const Float4Decode& job) {
  for (int64_t group = 0; group < job.groups; ++group) {
    const float multiplier = multiplier_of(job.scales[group], job.global_scale);
    const uint8_t* codes = job.codes + group * (kGroup / 2);
    float* weight = job.weight + group * kGroup;
    for (int i = 0; i < kGroup / 2; ++i) {
      weight[2 * i] = float4_value(codes[i] & 15u) * multiplier;
      weight[2 * i + 1] = float4_value(codes[i] >> 4) * multiplier;
    }
  }
}

}  // namespace
}  // namespace tq
