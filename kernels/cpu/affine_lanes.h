// What the affine loops need of lanes and of storage types.
#pragma once

#include "affine.h"
#include "floats.h"
#include "lanes.h"

namespace tq {
namespace {

// A scale and a bias of each group.
struct Pair {
  Floats scale;
  Floats bias;
};

inline Floats magnitude(Floats a) { return (Floats)((Words)a & 0x7FFFFFFFu); }

inline Pair select(Integers where, Pair yes, Pair no) {
  return {where ? yes.scale : no.scale, where ? yes.bias : no.bias};
}

// To the nearest integer, ties to even. 0 <= a < 2^22.
inline Floats round_small(Floats a) {
  constexpr float kUnits = 8388608.0f;  // from here on floats are integers
  return (a + kUnits) - kUnits;
}

// To the nearest integer, ties to even.
inline Floats round_any(Floats a) {
  constexpr float kUnits = 8388608.0f;
  const Floats positive = magnitude(a);
  const Floats rounded = positive < kUnits ? round_small(positive) : positive;
  return a < 0.0f ? -rounded : rounded;
}

// The storage types, value by value.
struct Bfloat {
  using Stored = uint16_t;
  static float widen(Stored value) { return from_bits(static_cast<uint32_t>(value) << 16); }
  static Stored narrow(float value) { return float_to_bfloat(value); }
};
struct Half {
  using Stored = uint16_t;
  static float widen(Stored value) { return half_to_float(value); }
  static Stored narrow(float value) { return float_to_half(value); }
};
struct Single {
  using Stored = uint32_t;
  static float widen(Stored value) { return from_bits(value); }
  static Stored narrow(float value) { return to_bits(value); }
};

// The memory of a job need not be aligned.
template <class Type>
inline float load(const uint8_t* from, int64_t index) {
  typename Type::Stored stored;
  std::memcpy(&stored, from + index * static_cast<int64_t>(sizeof stored), sizeof stored);
  return Type::widen(stored);
}

template <class Type>
inline void store(uint8_t* to, int64_t index, float value) {
  const typename Type::Stored stored = Type::narrow(value);
  std::memcpy(to + index * static_cast<int64_t>(sizeof stored), &stored, sizeof stored);
}

// What the pair reads as once it is stored.
template <class Type>
inline Floats stored_as(Floats values) {
  for (int lane = 0; lane < kLanes; ++lane) values[lane] = Type::widen(Type::narrow(values[lane]));
  return values;
}

template <class Type>
inline Pair stored_as(Pair pair) {
  return {stored_as<Type>(pair.scale), stored_as<Type>(pair.bias)};
}

}  // namespace
}  // namespace tq
