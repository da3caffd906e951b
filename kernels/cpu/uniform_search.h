// Scales of uniform quantisation: groups lie side by side in the lanes, and every sum runs through a group in order.
#pragma once

#include "uniform_types.h"

namespace tq {
namespace {

constexpr int kLargestGroup = 256;
constexpr int kCandidates = 16;  // scales that the search tries
constexpr int kTogether = 4;     // of which so many have their sums run side by side

// The least half that is not below a value, kLeastHalf to kGreatestHalf. Values are not negative.
inline Floats half_above(Floats value) {
  const Floats normal = (Floats)(((Words)value + 0x1FFFu) & 0xFFFFE000u);
  const Floats nearest = (value + 0.5f) - 0.5f;  // a multiple of 2^-24
  const Floats denormal = most(nearest < value ? nearest + kLeastHalf : nearest, all(kLeastHalf));
  return least(value < 0x1p-14f ? denormal : normal, all(kGreatestHalf));
}

// How far each group reaches to both sides of zero.
struct Reach {
  Floats above;
  Floats below;
};

template <class Bits>
Floats candidate(const Reach& reach, int k) {
  const Floats scale = half_above(most(reach.above, reach.below) / Bits::kDivisors[k]);
  return Bits::kSigned ? (reach.above > reach.below ? -scale : scale) : scale;
}

// Candidate scales, and the squared errors that they leave. A reciprocal stands for the division.
struct Candidates {
  Floats scales[kTogether];
  Floats errors[kTogether];
};

template <class Bits>
void measure(const Floats* weights, int64_t size, Candidates& candidates) {
  Floats inverses[kTogether], sums[kTogether];
  for (int k = 0; k < kTogether; ++k) {
    inverses[k] = 1.0f / candidates.scales[k];
    sums[k] = Floats{};
  }
  for (int64_t i = 0; i < size; ++i) {
    for (int k = 0; k < kTogether; ++k) {
      const Floats quotient = weights[i] * inverses[k];
      const Floats error = quotient - ((Bits::clamped(quotient) + kUnits) - kUnits);
      sums[k] += error * error;
    }
  }
  for (int k = 0; k < kTogether; ++k) {
    candidates.errors[k] = sums[k] * (candidates.scales[k] * candidates.scales[k]);
  }
}

// The least error wins, the first of equals.
template <class Bits>
Floats searched_scale(const Floats* weights, int64_t size, const Reach& reach) {
  Floats best{}, least_error = all(__builtin_inff());
  for (int from = 0; from < kCandidates; from += kTogether) {
    Candidates candidates;
    for (int k = 0; k < kTogether; ++k) candidates.scales[k] = candidate<Bits>(reach, from + k);
    measure<Bits>(weights, size, candidates);
    for (int k = 0; k < kTogether; ++k) {
      const Integers better = candidates.errors[k] < least_error;
      best = better ? candidates.scales[k] : best;
      least_error = better ? candidates.errors[k] : least_error;
    }
  }
  return best;
}

}  // namespace
}  // namespace tq
