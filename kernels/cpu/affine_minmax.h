// The scale and bias that `mx.quantize` chooses: the range of a group, moved so that the edge further from zero and
// zero itself are levels. The rule is that of the CPU backend of MLX 0.32, in float32.
#pragma once

#include "affine_lanes.h"

namespace tq {
namespace {

struct Range {
  Floats low;
  Floats high;
  Integers broken;  // all bits set where a value is NaN or Inf, or the range overflows
};

inline Range range_of(const Floats* values, int size) {
  Range range = {values[0], values[0], Integers{}};
  for (int i = 0; i < size; ++i) {
    range.low = least(values[i], range.low);
    range.high = most(values[i], range.high);
    range.broken |= (values[i] - values[i]) != 0.0f;
  }
  const Floats width = range.high - range.low;
  range.broken |= (width - width) != 0.0f;
  return range;
}

inline Pair minmax(const Range& range, float largest) {
  const Integers below = magnitude(range.low) > magnitude(range.high);
  const Floats edge = below ? range.low : range.high;
  const Floats width = most((range.high - range.low) / largest, all(1e-7f));
  const Floats step = below ? width : -width;
  const Floats steps = round_any(edge / step);
  const Integers moved = steps != 0.0f;
  const Floats divisor = moved ? steps : all(1.0f);
  return {moved ? edge / divisor : step, moved ? edge : all(0.0f)};
}

// The code of a value, as a float. Clamped before it is rounded, which gives the same; NaN becomes 0.
inline Floats code_of(Floats value, const Pair& pair, float largest) {
  const Floats place = (value - pair.bias) / pair.scale;
  return round_small(least(most(place, all(0.0f)), all(largest)));
}

}  // namespace
}  // namespace tq
