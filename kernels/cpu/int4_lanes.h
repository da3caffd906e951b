// What the INT4 loops need of lanes and of storage types.
#pragma once

#include "floats.h"
#include "lanes.h"

namespace tq {
namespace {

inline Words most(Words a, Words b) { return a > b ? a : b; }

// What the loops need of a storage type. kTooLarge: the bits, as float32, of the least magnitude that is refused, half
// the greatest finite number or so: a scale times -8 then stays finite. kEpsilon: the scale that stands for zero.
// rounded: to the type, to nearest even; any sign.
struct Bfloat16 {
  using Word = uint16_t;
  static constexpr uint32_t kTooLarge = 0x7F000000;
  static constexpr float kEpsilon = 0x1p-7f;
  static float widen(Word word) { return from_bits(static_cast<uint32_t>(word) << 16); }
  static Word narrow(float value) { return float_to_bfloat(value); }
  static Floats rounded(Floats values) {
    const Words bits = (Words)values;
    return (Floats)((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u);
  }
};

struct Float16 {
  using Word = uint16_t;
  static constexpr uint32_t kTooLarge = 0x47000000;
  static constexpr float kEpsilon = 0x1p-10f;
  static float widen(Word word) { return half_to_float(word); }
  static Word narrow(float value) { return float_to_half(value); }
  // Adding a power of two so great that the sum keeps eleven bits of the value, and fewer below 2^-14.
  static Floats rounded(Floats values) {
    const Words bits = (Words)values;
    const Words exponent = most(bits & 0x7F800000u, Words{} + 0x38800000u);
    const Floats magic = (Floats)((exponent + (13u << 23)) | (bits & 0x80000000u));
    return (values + magic) - magic;
  }
};

struct Float32 {
  using Word = uint32_t;
  static constexpr uint32_t kTooLarge = 0x7F000000;
  static constexpr float kEpsilon = 0x1p-23f;
  static float widen(Word word) { return from_bits(word); }
  static Word narrow(float value) { return to_bits(value); }
  static Floats rounded(Floats values) { return values; }
};

}  // namespace
}  // namespace tq
