// Encoding a batch of groups: unit vectors, rotation, nearest level, norm of the reconstruction.
#pragma once

#include "batch.h"
#include "bitstream.h"

namespace tq {
namespace {

// How x / length is computed; the result is correctly rounded in every case. The short forms multiply by the rounded
// reciprocal and correct the quotient by its exact remainder, once or twice; once is enough for the few significands
// that BF16 and F16 have (all pairs were walked through).
enum class Division { kTrue, kOneStep, kTwoSteps };

template <class V, Division D>
TQ_INLINE typename V::F divide(typename V::F value, typename V::F divisor, typename V::F reciprocal) {
  if constexpr (D == Division::kTrue) {
    return V::div(value, divisor);
  } else {
    typename V::F quotient = V::mul(value, reciprocal);
    quotient = V::fma(V::fnma(quotient, divisor, value), reciprocal, quotient);
    if constexpr (D == Division::kOneStep) return quotient;
    else return V::fma(V::fnma(quotient, divisor, value), reciprocal, quotient);
  }
}

// Weights to the rotation of their unit vectors, before the division by the root and the second signs.
template <class V, int G, Division D>
TQ_NOINLINE void rotate(const Constants& constants, typename V::F divisor, Rows<V, G>& rows) {
  const typename V::F reciprocal = V::div(V::all(1.0f), divisor);
  inner_stages<V, G>(rows, [&](int start, auto i) TQ_LAMBDA {
    const typename V::F unit = divide<V, D>(V::load(rows.at[start + i]), divisor, reciprocal);
    return V::mul(unit, V::all(constants.tables.signs_in[start + i]));
  });
  outer_stages<V, G>(rows, [](int, typename V::F value) TQ_LAMBDA { return value; });
}

// What is known of a batch's lengths.
struct Lengths {
  int first_broken;  // the first lane that is not finite, the number of lanes if there is none
  bool faint;        // one is above zero, but below what the search takes
  bool ordinary;     // each is zero, or far from where squares and quotients lose digits
};

template <class V>
TQ_INLINE Lengths inspect(typename V::F length) {
  alignas(64) float lane[V::kLanes];
  V::store(lane, length);
  Lengths found{V::kLanes, false, true};
  for (int i = V::kLanes - 1; i >= 0; --i) {
    const float value = lane[i];
    if (!(value < __builtin_inff())) found.first_broken = i;
    found.faint |= value > 0.0f && value < kSmallest;
    found.ordinary &= value == 0.0f || (value >= kSmallest && value <= 0x1p20f);
  }
  return found;
}

template <class V, int G>
TQ_INLINE void rotate_batch(const Encode& job, bool short_division, typename V::F length, Rows<V, G>& rows) {
  const typename V::F one = V::all(1.0f);
  const typename V::F divisor = V::select(V::greater(length, V::all(0.0f)), length, one);
  if constexpr (V::kFused) {
    if (short_division && job.dtype != TQ_F32) {
      return rotate<V, G, Division::kOneStep>(*job.constants, divisor, rows);
    }
    if (short_division) return rotate<V, G, Division::kTwoSteps>(*job.constants, divisor, rows);
  }
  rotate<V, G, Division::kTrue>(*job.constants, divisor, rows);
}

// Number of boundaries below the value, by halving.
template <class V, int BITS>
TQ_INLINE typename V::I nearest(typename V::F value, float centre, const typename V::Table (&thresholds)[BITS - 1]) {
  typename V::I k = V::add_where(V::greater(value, V::all(centre)), V::all(0), 1 << (BITS - 1));
  each<BITS - 1>([&](auto level) TQ_LAMBDA {
    constexpr int kStep = BITS - 2 - level;
    k = V::add_where(V::greater(value, V::look_up(thresholds[kStep], k)), k, 1 << kStep);
  });
  return k;
}

// Rotated rows to the bit stream of their indices; returns the lengths of the reconstructed unit vectors.
template <class V, int BITS, int G>
TQ_INLINE typename V::F quantise(const Constants& constants, Rows<V, G>& rows, Words<V, BITS, G>& words) {
  typename V::Table thresholds[BITS - 1];
  each<BITS - 1>([&](auto s) TQ_LAMBDA { thresholds[s] = V::table(constants.thresholds[s]); });
  const float centre = constants.thresholds[BITS - 1][0];
  typename V::I word[BITS];
  inner_stages<V, G>(rows, [&](int start, auto i) TQ_LAMBDA {
    const typename V::F sign = V::all(constants.tables.signs_out[start + i]);
    const typename V::I k = nearest<V, BITS>(V::mul(V::load(rows.at[start + i]), sign), centre, thresholds);
    append<V, BITS>(word, i, k);
    if constexpr (i == kStream - 1) {
      each<BITS>([&](auto w) TQ_LAMBDA { V::store(words.at[start / kStream * BITS + w], word[w]); });
    }
    return V::look_up(V::table(constants.levels[constants.negative_out[start + i]]), k);
  });
  outer_stages<V, G>(rows, [&](int, typename V::F value) TQ_LAMBDA {
    return divide_by_root<V>(value, constants);
  });
  return lengths<V, G>(rows);
}

}  // namespace
}  // namespace tq
