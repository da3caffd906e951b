// The Walsh-Hadamard transform of several groups side by side: row i of a batch holds number i of every group, so each
// butterfly is one addition and one subtraction of whole vectors. Distances run 1, 2, 4, ...: the order fixes the bits.
#pragma once

#include "unroll.h"

namespace tq {
namespace {

constexpr int kStream = 32;  // indices after which the bit stream is back at a word's start

template <class V, int G>
struct alignas(64) Rows {
  float at[G][V::kLanes];
};

template <class V, int N, int Distance = 1>
TQ_INLINE void butterflies(typename V::F (&row)[N]) {
  if constexpr (Distance < N) {
    each<N>([&](auto i) TQ_LAMBDA {
      if constexpr ((i & Distance) == 0) {
        const typename V::F left = row[i], right = row[i + Distance];
        row[i] = V::add(left, right);
        row[i + Distance] = V::sub(left, right);
      }
    });
    butterflies<V, N, 2 * Distance>(row);
  }
}

// Stages 1 to V::kRadix / 2. make(start, i) gives row start + i of the input; i is a constant from 0 to kStream - 1.
template <class V, int G, class Make>
TQ_INLINE void inner_stages(Rows<V, G>& rows, Make make) {
  for (int start = 0; start < G; start += kStream) {
    each<kStream / V::kRadix>([&](auto part) TQ_LAMBDA {
      constexpr int kFirst = part * V::kRadix;
      typename V::F row[V::kRadix];
      each<V::kRadix>([&](auto i) TQ_LAMBDA { row[i] = make(start, Index<kFirst + i>{}); });
      butterflies<V>(row);
      each<V::kRadix>([&](auto i) TQ_LAMBDA { V::store(rows.at[start + kFirst + i], row[i]); });
    });
  }
}

// Stages Distance to G / 2, as many at a time as fit the registers. finish(at, value) gives what is stored as row `at`.
template <class V, int G, int Distance = V::kRadix, class Finish>
TQ_INLINE void outer_stages(Rows<V, G>& rows, Finish finish) {
  constexpr int kRadix = G / Distance < V::kRadix ? G / Distance : V::kRadix;
  constexpr bool kLast = Distance * kRadix == G;
  for (int block = 0; block < G; block += Distance * kRadix) {
    for (int start = block; start < block + Distance; ++start) {
      typename V::F row[kRadix];
      each<kRadix>([&](auto i) TQ_LAMBDA { row[i] = V::load(rows.at[start + Distance * i]); });
      butterflies<V>(row);
      each<kRadix>([&](auto i) TQ_LAMBDA {
        const int at = start + Distance * i;
        if constexpr (kLast) row[i] = finish(at, row[i]);
        V::store(rows.at[at], row[i]);
      });
    }
  }
  if constexpr (!kLast) outer_stages<V, G, Distance * kRadix>(rows, finish);
}

// x / root, correctly rounded. Without over- and underflow the two-part reciprocal gives the same bits (a test walks
// through every significand); an even power of two under the root makes the product exact anyway.
template <class V>
TQ_INLINE typename V::F divide_by_root(typename V::F value, const Constants& constants) {
  if constexpr (V::kFused) {
    const typename V::F low = V::mul(value, V::all(constants.inverse_low));
    return V::fma(value, V::all(constants.inverse_high), low);
  } else {
    return V::div(value, V::all(constants.root));
  }
}

// Lengths of the groups: eight lanes of rows summed downwards, each square rounded, then the lanes in order. Where the
// squares are exact anyway, adding them in one step with the multiplication gives the same bits.
template <class V, int G, bool ExactSquares = false>
TQ_INLINE typename V::F lengths(const Rows<V, G>& rows) {
  constexpr int kSums = 8;
  typename V::F sum[kSums];
  each<kSums>([&](auto i) TQ_LAMBDA {
    const typename V::F value = V::load(rows.at[i]);
    sum[i] = V::mul(value, value);
  });
  for (int start = kSums; start < G; start += kSums) {
    each<kSums>([&](auto i) TQ_LAMBDA {
      const typename V::F value = V::load(rows.at[start + i]);
      if constexpr (V::kFused && ExactSquares) sum[i] = V::fma(value, value, sum[i]);
      else sum[i] = V::add(sum[i], V::mul(value, value));
    });
  }
  each<kSums - 1>([&](auto i) TQ_LAMBDA { sum[0] = V::add(sum[0], sum[i + 1]); });
  return V::sqrt(sum[0]);
}

}  // namespace
}  // namespace tq
