// FP8 E4M3 weights with one scale a block: the loops, which compilers vectorise for every instruction set.
//
// Left out: threads, and what an argument may be. Loops hold no branches: both sides of every choice are computed.
#pragma once

#include "float8_interface.h"
#include "floats.h"

namespace tq {
namespace {

constexpr float kGreatestFloat8 = 448.0f;
constexpr int32_t kGreatestFloat8Bits = 0x43E00000;
constexpr int32_t kExponent = 0x7F800000;
constexpr int32_t kLeastNormal = 121;  // exponent of 2^-6; smaller numbers are multiples of 2^-9

// The code of a number that is not negative, rounded to nearest even; 448 for all that is greater.
inline int32_t float8_code(float positive) {
  const int32_t given = static_cast<int32_t>(to_bits(positive));
  const int32_t bits = given < kGreatestFloat8Bits ? given : kGreatestFloat8Bits;
  const int32_t own = bits & kExponent;
  const int32_t exponent = own > (kLeastNormal << 23) ? own : kLeastNormal << 23;
  // Added to a power of two 2^20 times as great, the number keeps three bits behind its first, rounded.
  const int32_t power = exponent + (20 << 23);
  const float sum = from_bits(static_cast<uint32_t>(bits)) + from_bits(static_cast<uint32_t>(power));
  return (exponent >> 20) - (kLeastNormal << 3) + static_cast<int32_t>(to_bits(sum)) - power;
}

inline float float8_value(uint8_t code) {
  const uint32_t rest = code & 0x7F;
  const uint32_t magnitude = rest == 0x7F ? 0x7FC00000 : rest << 20;
  // Exponents are moved by a multiplication with 2^120, which is exact and takes care of denormals.
  return from_bits(magnitude | static_cast<uint32_t>(code & 0x80) << 24) * 0x1p120f;
}

// What the loops need of a storage type. kInfinity: the least magnitude that is not finite. kEpsilon: the scale of a
// block whose scale would be zero. rounded: a quotient that is not negative, rounded to the type. Where the type has
// denormals it is rounded too finely; the code is 0 there either way.
struct Bfloat16 {
  using Word = uint16_t;
  static constexpr Word kMagnitude = 0x7FFF, kInfinity = 0x7F80, kEpsilon = 0x3C00;
  static constexpr int kSignShift = 8;
  static float value(Word word) { return from_bits(static_cast<uint32_t>(word) << 16); }
  static Word word(float value) { return float_to_bfloat(value); }
  static float rounded(float value) {
    const uint32_t bits = to_bits(value);
    return from_bits((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u);
  }
};

struct Float16 {
  using Word = uint16_t;
  static constexpr Word kMagnitude = 0x7FFF, kInfinity = 0x7C00, kEpsilon = 0x1400;
  static constexpr int kSignShift = 8;
  static float value(Word word) { return half_to_float(word); }
  static Word word(float value) { return float_to_half(value); }
  static float rounded(float value) {
    const uint32_t bits = to_bits(value);
    return from_bits((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFFu);
  }
};

struct Float32 {
  using Word = uint32_t;
  static constexpr Word kMagnitude = 0x7FFFFFFF, kInfinity = 0x7F800000, kEpsilon = 0x34000000;
  static constexpr int kSignShift = 24;
  static float value(Word word) { return from_bits(word); }
  static Word word(float value) { return to_bits(value); }
  static float rounded(float value) { return value; }
};

// The memory need not be aligned.
template <class Type>
typename Type::Word load(const uint8_t* words, int64_t i) {
  typename Type::Word word;
  std::memcpy(&word, words + i * static_cast<int64_t>(sizeof word), sizeof word);
  return word;
}

// Magnitudes of floats are ordered as integers are, and NaN and Inf come last.
template <class Type>
typename Type::Word greatest(const uint8_t* weight, int64_t count, typename Type::Word so_far) {
  for (int64_t i = 0; i < count; ++i) {
    const typename Type::Word magnitude = load<Type>(weight, i) & Type::kMagnitude;
    so_far = magnitude > so_far ? magnitude : so_far;
  }
  return so_far;
}

template <class Type>
typename Type::Word scale_of(typename Type::Word magnitude) {
  const typename Type::Word scale = Type::word(Type::value(magnitude) / kGreatestFloat8);
  return scale != 0 ? scale : Type::kEpsilon;
}

template <class Type, bool kRoundQuotient>
void encode_run(const uint8_t* __restrict weight, int64_t count, float scale, uint8_t* __restrict codes) {
  for (int64_t i = 0; i < count; ++i) {
    const typename Type::Word word = load<Type>(weight, i);
    const float quotient = Type::value(word & Type::kMagnitude) / scale;
    const int32_t code = float8_code(kRoundQuotient ? Type::rounded(quotient) : quotient);
    codes[i] = static_cast<uint8_t>(code | ((word >> Type::kSignShift) & 0x80));
  }
}

inline void decode_run(const uint8_t* __restrict codes, int64_t count, float scale, float* __restrict weight) {
  for (int64_t i = 0; i < count; ++i) weight[i] = float8_value(codes[i]) * scale;
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class Type>
int64_t first_bad_row(const Float8Encode& job, int64_t row) {
  const int64_t stride = job.shape.columns * static_cast<int64_t>(sizeof(typename Type::Word));
  while (greatest<Type>(job.weight + row * stride, job.shape.columns, 0) < Type::kInfinity) ++row;
  return row;
}

template <class Type, bool kRoundQuotient>
int64_t encode_blocks(const Float8Encode& job) {
  constexpr int64_t kBytes = sizeof(typename Type::Word);
  const Float8Shape shape = job.shape;
  uint8_t* scales = job.scales;
  for (int64_t top = 0; top < shape.rows; top += shape.block_rows) {
    const int64_t bottom = least(top + shape.block_rows, shape.rows);
    for (int64_t left = 0; left < shape.columns; left += shape.block_columns) {
      const int64_t width = least(shape.block_columns, shape.columns - left);
      typename Type::Word magnitude = 0;
      for (int64_t row = top; row < bottom; ++row) {
        magnitude = greatest<Type>(job.weight + (row * shape.columns + left) * kBytes, width, magnitude);
      }
      if (magnitude >= Type::kInfinity) return first_bad_row<Type>(job, top);
      const typename Type::Word scale = scale_of<Type>(magnitude);
      std::memcpy(scales, &scale, kBytes);
      scales += kBytes;
      for (int64_t row = top; row < bottom; ++row) {
        const int64_t place = row * shape.columns + left;
        encode_run<Type, kRoundQuotient>(job.weight + place * kBytes, width, Type::value(scale), job.codes + place);
      }
    }
  }
  return -1;
}

template <class Type>
void decode_blocks(const Float8Decode& job) {
  const Float8Shape shape = job.shape;
  const int64_t blocks = (shape.columns + shape.block_columns - 1) / shape.block_columns;
  for (int64_t row = 0; row < shape.rows; ++row) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t left = block * shape.block_columns;
      const int64_t place = row * shape.columns + left;
      const float scale = Type::value(load<Type>(job.scales, row / shape.block_rows * blocks + block));
      decode_run(job.codes + place, least(shape.block_columns, shape.columns - left), scale, job.weight + place);
    }
  }
}

}  // namespace
}  // namespace tq
