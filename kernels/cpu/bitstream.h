// The little-endian bit stream of 32 indices, kept in as many words as an index has bits.
#pragma once

#include "unroll.h"

namespace tq {
namespace {

// Appends index k of position i (a constant from 0 to 31).
template <class V, int BITS, int I>
TQ_INLINE void append(typename V::I (&word)[BITS], Index<I>, typename V::I k) {
  constexpr int kPlace = I * BITS / 32, kOffset = I * BITS % 32;
  if constexpr (kOffset == 0) {
    word[kPlace] = k;
  } else {
    word[kPlace] = V::either(word[kPlace], V::template left<kOffset>(k));
  }
  if constexpr (kOffset + BITS > 32) word[kPlace + 1] = V::template right<32 - kOffset>(k);
}

// Index i of the stream; bits above the index are left in.
template <class V, int BITS, int I>
TQ_INLINE typename V::I extract(const typename V::I (&word)[BITS], Index<I>) {
  constexpr int kPlace = I * BITS / 32, kOffset = I * BITS % 32;
  if constexpr (kOffset == 0) {
    return word[kPlace];
  } else {
    const typename V::I low = V::template right<kOffset>(word[kPlace]);
    if constexpr (kOffset + BITS <= 32) return low;
    else return V::either(low, V::template left<32 - kOffset>(word[kPlace + 1]));
  }
}

}  // namespace
}  // namespace tq
