// Tables of up to 256 numbers, looked up sixteen entries at a time: the nearest level of a value, and the level of an
// index.
#pragma once

#include <cstring>

#include "unroll.h"

namespace tq {
namespace {

constexpr int kTable = 16;  // entries of one look-up, whatever the instruction set

// The midpoints by which an index grows bit by bit, from the highest: step s has 2^s of them, one for each index so far.
template <int BITS>
struct alignas(64) Halving {
  float first;
  alignas(64) float at[BITS][1 << (BITS > 5 ? BITS - 1 : 4)] = {};

  explicit Halving(const float* midpoints) {
    first = midpoints[(1 << (BITS - 1)) - 1];
    for (int step = 1; step < BITS; ++step) {
      const int stride = 1 << (BITS - 1 - step);
      for (int k = 0; k < 1 << step; ++k) at[step][k] = midpoints[(2 * k + 1) * stride - 1];
    }
  }
};

template <int BITS>
struct alignas(64) Levels {
  float at[1 << (BITS > 4 ? BITS : 4)] = {};

  explicit Levels(const float* levels) { std::memcpy(at, levels, sizeof(float) << BITS); }
};

// Entry k of 16 * 2^DEEP entries. is_high[d] says where bit d of k, counted from its highest, is set.
template <class V, int DEEP>
TQ_INLINE typename V::F entry(const float* table, typename V::I k, const typename V::Mask* is_high) {
  if constexpr (DEEP == 0) {
    return V::look_up(V::table(table), k);
  } else {
    const typename V::F low = entry<V, DEEP - 1>(table, k, is_high + 1);
    const typename V::F high = entry<V, DEEP - 1>(table + (kTable << (DEEP - 1)), k, is_high + 1);
    return V::select(is_high[0], high, low);
  }
}

// How many midpoints lie below the value: the index of the nearest level, the lower one where two are as near.
template <class V, int BITS>
TQ_INLINE typename V::I below(const Halving<BITS>& halving, typename V::F value) {
  typename V::Mask is_set[BITS];
  is_set[0] = V::greater(value, V::all(halving.first));
  typename V::I k = V::add_where(is_set[0], V::all(0), 1);
  each<BITS - 1>([&](auto before) TQ_LAMBDA {
    constexpr int kStep = before + 1;
    const typename V::F midpoint = entry<V, (kStep > 4 ? kStep - 4 : 0)>(halving.at[kStep], k, is_set);
    is_set[kStep] = V::greater(value, midpoint);
    k = V::add_where(is_set[kStep], V::template left<1>(k), 1);
  });
  return k;
}

// Where bit BIT of k is set, told by a float that is zero or 2^-63.
template <class V, int BIT>
TQ_INLINE typename V::Mask has_bit(typename V::I k) {
  const typename V::I moved = V::template left<29 - BIT>(V::both(k, V::all(1 << BIT)));
  return V::greater(V::as_floats(moved), V::all(0.0f));
}

// The level of index k; bits above the index do not matter.
template <class V, int BITS>
TQ_INLINE typename V::F level_of(const Levels<BITS>& levels, typename V::I k) {
  constexpr int kDeep = BITS > 4 ? BITS - 4 : 0;
  if constexpr (BITS < 4) k = V::both(k, V::all((1 << BITS) - 1));
  typename V::Mask is_high[kDeep + 1];
  each<kDeep>([&](auto d) TQ_LAMBDA { is_high[d] = has_bit<V, BITS - 1 - d>(k); });
  return entry<V, kDeep>(levels.at, k, is_high);
}

}  // namespace
}  // namespace tq
