// From a group's weights to the integers that its path is searched for.
#pragma once

#include "trellis_groups.h"
#include "trellis_types.h"

namespace tq {
namespace {

constexpr float kIntegerAt = 12582912.0f;  // 1.5 * 2^23: floats near it are integers
constexpr int kSquareLanes = 16;           // sums of squares that run side by side

struct Coordinates {
  alignas(64) int16_t at[kLargestGroup];
  float inverse;  // what the transformed weights were multiplied by
  int exponent;   // the power of two that was taken out before
  bool finite;    // where a weight is NaN or Inf, nothing else counts
};

TQ_INLINE float power_of_two(int exponent) {
  return exponent < -126 ? 0x1p-127f : from_bits(static_cast<uint32_t>(exponent + 127) << 23);
}

// The exponent of a positive float given by its bits.
TQ_INLINE int exponent_of(uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 23);
  if (exponent > 0) return exponent - 127;
  return static_cast<int>(to_bits(from_bits(bits) * 0x1p64f) >> 23) - 127 - 64;
}

template <int N>
TQ_INLINE void multiply(Floats (&value)[N], float factor) {
  each<N>([&](auto i) TQ_LAMBDA { value[i] *= factor; });
}

// Brings the greatest magnitude into [1, 2): exact, but for numbers that become denormal.
template <int N>
TQ_INLINE void take_out(Floats (&value)[N], int exponent) {
  if (exponent >= -127) return multiply(value, power_of_two(-exponent));
  multiply(value, 0x1p127f);
  multiply(value, power_of_two(-exponent - 127));
}

template <int N>
TQ_INLINE float sum_of_squares(const Floats (&value)[N]) {
  constexpr int kSums = kSquareLanes / kLanes;
  Floats sum[kSums];
  each<kSums>([&](auto i) TQ_LAMBDA { sum[i] = value[i] * value[i]; });
  each<N - kSums>([&](auto i) TQ_LAMBDA {
    constexpr int kAt = kSums + i;
    sum[kAt % kSums] += value[kAt] * value[kAt];
  });
  if constexpr (kSums == 4) sum[1] += sum[3];
  if constexpr (kSums == 4) sum[0] += sum[2];
  if constexpr (kSums > 1) sum[0] += sum[1];
  return joined(sum[0], [](Floats a, Floats b) TQ_LAMBDA { return a + b; })[0];
}

// signs: nullptr where groups are not rotated.
template <int G>
TQ_NOINLINE void find_coordinates(const float* weight, const float* signs, float deviation, Coordinates& to) {
  constexpr int kVectors = G / kLanes;
  Floats value[kVectors];
  Words greatest{};
  each<kVectors>([&](auto i) TQ_LAMBDA {
    value[i] = read<Floats>(weight + i * kLanes);
    const Words magnitude = (Words)value[i] & 0x7FFFFFFFu;
    greatest = magnitude > greatest ? magnitude : greatest;
  });
  const uint32_t bits = joined(greatest, [](Words a, Words b) TQ_LAMBDA { return a > b ? a : b; })[0];
  to.finite = bits < 0x7F800000u;
  if (!to.finite) return;
  to.exponent = bits == 0 ? 0 : exponent_of(bits);
  take_out(value, to.exponent);
  if (signs != nullptr) {
    each<kVectors>([&](auto i) TQ_LAMBDA { value[i] *= read<Floats>(signs + i * kLanes); });
    transform<kLanes>(value);
  }
  const float mean = sum_of_squares(value) * (1.0f / G);
  to.inverse = deviation / __builtin_sqrtf(bits == 0 ? 1.0f : mean);
  each<kVectors>([&](auto i) TQ_LAMBDA {
    const Integers whole = (Integers)(value[i] * to.inverse + kIntegerAt) - static_cast<int32_t>(to_bits(kIntegerAt));
    write(to.at + i * kLanes, narrowed((Words)whole & 0xFFFFu));
  });
}

template <class Type, int G>
TQ_INLINE void read_coordinates(const uint8_t* weight, const float* signs, float deviation, Coordinates& to) {
  alignas(64) float wide[G];
  for (int i = 0; i < G; i += kLanes) write(wide + i, Type::load(weight + i * Type::kBytes));
  find_coordinates<G>(wide, signs, deviation, to);
}

}  // namespace
}  // namespace tq
