// The Walsh-Hadamard transform of several groups side by side: row i of a batch holds number i of every group, so each
// butterfly is one addition and one subtraction of whole vectors. Distances run 1, 2, 4, ...: the order fixes the bits.
#pragma once

#include "unroll.h"

namespace tq {
namespace {

constexpr int kInner = 16;  // rows that the first stages keep in registers
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

// Stages 1 to kInner / 2. make(start, i) gives row start + i of the input; i is a constant from 0 to kStream - 1.
template <class V, int G, class Make>
TQ_INLINE void inner_stages(Rows<V, G>& rows, Make make) {
  for (int start = 0; start < G; start += kStream) {
    each<kStream / kInner>([&](auto half) TQ_LAMBDA {
      typename V::F row[kInner];
      each<kInner>([&](auto i) TQ_LAMBDA { row[i] = make(start, Index<half * kInner + i>{}); });
      butterflies<V>(row);
      each<kInner>([&](auto i) TQ_LAMBDA { V::store(rows.at[start + half * kInner + i], row[i]); });
    });
  }
}

// Stages kInner to G / 2. finish(i, value) gives what is stored as row i.
template <class V, int G, class Finish>
TQ_INLINE void outer_stages(Rows<V, G>& rows, Finish finish) {
  constexpr int kOuter = G / kInner;
  for (int start = 0; start < kInner; ++start) {
    typename V::F row[kOuter];
    each<kOuter>([&](auto i) TQ_LAMBDA { row[i] = V::load(rows.at[start + kInner * i]); });
    butterflies<V>(row);
    each<kOuter>([&](auto i) TQ_LAMBDA {
      const int at = start + kInner * i;
      V::store(rows.at[at], finish(at, row[i]));
    });
  }
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

// Lengths of the groups: eight lanes of rows summed downwards, each square rounded, then the lanes in order.
template <class V, int G>
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
      sum[i] = V::add(sum[i], V::mul(value, value));
    });
  }
  each<kSums - 1>([&](auto i) TQ_LAMBDA { sum[0] = V::add(sum[0], sum[i + 1]); });
  return V::sqrt(sum[0]);
}

}  // namespace
}  // namespace tq
