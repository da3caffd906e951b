// The least-squares scale of a group, and the float that it is stored in.
#pragma once

#include "trellis_groups.h"

namespace tq {
namespace {

constexpr double inverse_root(int size) {
  return size == 128 ? 0.08838834764831845 : size == 64 ? 0.125 : size == 32 ? 0.17677669529663687 : 0.25;
}

// Of the coordinates x and the numbers q of a path.
struct Fit {
  int32_t product;  // <x, q>
  int32_t square;   // <q, q>

  // By how much the path shortens the squared error.
  double gain() const {
    return product > 0 ? static_cast<double>(product) * static_cast<double>(product) / square : 0.0;
  }
  double scale() const { return static_cast<double>(product) / square; }
};

TQ_INLINE Fit fit_of(const int16_t* coordinates, const int16_t* numbers, int size) {
  int32_t product = 0, square = 0;
  for (int i = 0; i < size; ++i) {
    product += coordinates[i] * numbers[i];
    square += numbers[i] * numbers[i];
  }
  return {product, square};
}

// The field of a positive scale times 2^exponent: the half-precision number of 2^16 times it with `mantissa` bits,
// rounded to nearest even; that of infinity where it is too large.
TQ_INLINE uint32_t scale_field(double scale, int exponent, int mantissa) {
  const uint32_t infinite = 31u << mantissa;
  uint64_t bits;
  std::memcpy(&bits, &scale, sizeof bits);
  const int power = static_cast<int>(bits >> 52) - 1023 + exponent + 16;
  if (scale == 0.0 || power < -14 - mantissa - 1) return 0;
  if (power > 15) return infinite;
  // Steps of the last place: below 2^-14 the place stays where it is.
  const int place = power < -14 ? -14 - power : 0;
  const uint64_t significand = (bits & 0xFFFFFFFFFFFFFull) | 1ull << 52;
  const int dropped = 52 - mantissa + place;
  const uint64_t half = (1ull << (dropped - 1)) - 1 + ((significand >> dropped) & 1);
  const uint32_t steps = static_cast<uint32_t>((significand + half) >> dropped);
  const uint32_t field = steps + (static_cast<uint32_t>(power + place + 14) << mantissa);
  return field < infinite ? field : infinite;
}

}  // namespace
}  // namespace tq
