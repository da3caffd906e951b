// Scale and bias by alternating least squares: the same format, less error than the range of a group gives.
//
// Codes for a pair, then the pair that fits those codes best, and so on, from four shrunken ranges. Each step goes
// kStride times as far as the fit asks, but for the last: codes change in few places, so that plain steps stall. Four
// starts of four steps so leave less error than four of eight plain ones. Codes are against the pair as stored, and
// the range's own pair stays where nothing is better.
#pragma once

#include "affine_minmax.h"

namespace tq {
namespace {

constexpr float kShrunken[] = {1.0f, 0.85f, 0.7f, 0.55f};
constexpr int kSteps = 4;
constexpr float kStride = 2.5f;

// The pair that fits a step's codes best, and how much of the sum of squares it explains: 0 where there is no fit.
struct Fit {
  Pair pair;
  Floats explained;
};

// Values are centred on their mean. Sums run over the group in order.
inline Fit fit(const Floats* centred, int size, const Pair& pair, float largest) {
  const Floats inverse = 1.0f / pair.scale, zero_code = -pair.bias / pair.scale;
  Floats sum = all(0.0f), squares = all(0.0f), products = all(0.0f);
  for (int i = 0; i < size; ++i) {
    const Floats place = centred[i] * inverse + zero_code;
    const Floats code = round_small(least(most(place, all(0.0f)), all(largest)));
    sum += code;
    squares += code * code;
    products += code * centred[i];
  }
  const float share = 1.0f / static_cast<float>(size);
  const Floats variance = squares - sum * sum * share;
  const Integers fits = (variance > 0.0f) & (products > 0.0f);
  const Floats scale = products / variance;
  const Pair best = {scale, -scale * (sum * share)};
  return {select(fits, best, pair), fits ? products * scale : all(0.0f)};
}

inline Pair stride(const Pair& from, const Pair& to) {
  const Floats scale = from.scale + kStride * (to.scale - from.scale);
  const Floats bias = from.bias + kStride * (to.bias - from.bias);
  return {scale > 0.0f ? scale : to.scale, bias};
}

inline Fit descend(const Floats* centred, int size, Pair pair, float largest) {
  for (int step = 1; step < kSteps; ++step) {
    pair = stride(pair, fit(centred, size, pair, largest).pair);
  }
  return fit(centred, size, pair, largest);
}

// A pair with scale 0 where no start found a fit.
inline Pair least_squares(const Floats* values, int size, const Range& range, float largest) {
  Floats sum = all(0.0f);
  for (int i = 0; i < size; ++i) sum += values[i];
  const Floats mean = sum * (1.0f / static_cast<float>(size));
  Floats centred[kAffineLargestGroup];
  for (int i = 0; i < size; ++i) centred[i] = values[i] - mean;
  const Floats half = (range.high - range.low) * 0.5f;
  const Floats middle = range.low + half - mean;
  Fit best = {};
  for (const float shrunken : kShrunken) {
    const Floats reach = half * shrunken;
    const Pair start = {reach * 2.0f / largest, middle - reach};
    const Fit found = descend(centred, size, start, largest);
    const Integers better = found.explained > best.explained;
    best = {select(better, found.pair, best.pair), better ? found.explained : best.explained};
  }
  return {best.pair.scale, best.pair.bias + mean};
}

// Eight bits leave nothing to search but the rounding of the scale: rounded inwards it cuts off the far edge.
template <class Type>
inline Pair next_scale(const Pair& pair) {
  Floats scale = pair.scale;
  for (int lane = 0; lane < kLanes; ++lane) {
    scale[lane] = Type::widen(static_cast<typename Type::Stored>(Type::narrow(scale[lane]) + 1));
  }
  return {scale, pair.bias};
}

inline Floats error_of(const Floats* values, int size, const Pair& pair, float largest) {
  Floats error = all(0.0f);
  for (int i = 0; i < size; ++i) {
    const Floats lost = code_of(values[i], pair, largest) * pair.scale + pair.bias - values[i];
    error += lost * lost;
  }
  return error;
}

// The better of two pairs as stored; the first where they tie.
template <class Type>
inline Pair search(const Floats* values, int size, const Range& range, float largest) {
  const Pair first = stored_as<Type>(minmax(range, largest));
  const Pair second = largest > 63.0f ? next_scale<Type>(first)
                                      : stored_as<Type>(least_squares(values, size, range, largest));
  const Integers better =
      (error_of(values, size, second, largest) < error_of(values, size, first, largest)) & (second.scale != 0.0f);
  return select(better, second, first);
}

}  // namespace
}  // namespace tq
