// The bit stream of HLWQ: the first index in the highest bits of the first byte. 32 indices fill as many words as an
// index has bits; the words are big-endian, so they are swapped on their way to and from memory.
#pragma once

#include "unroll.h"

namespace tq {
namespace {

// Appends index k of position i (a constant from 0 to 31).
template <class V, int BITS, int I>
TQ_INLINE void append_high(typename V::I (&word)[BITS], Index<I>, typename V::I k) {
  constexpr int kPlace = I * BITS / 32, kOffset = I * BITS % 32, kLeft = 32 - kOffset - BITS;
  if constexpr (kLeft >= 0) {
    const typename V::I moved = V::template left<kLeft>(k);
    if constexpr (kOffset == 0) word[kPlace] = moved;
    else word[kPlace] = V::either(word[kPlace], moved);
  } else {
    word[kPlace] = V::either(word[kPlace], V::template right<-kLeft>(k));
    word[kPlace + 1] = V::template left<32 + kLeft>(k);
  }
}

// Index i of the stream; bits above the index are left in.
template <class V, int BITS, int I>
TQ_INLINE typename V::I extract_high(const typename V::I (&word)[BITS], Index<I>) {
  constexpr int kPlace = I * BITS / 32, kOffset = I * BITS % 32, kLeft = 32 - kOffset - BITS;
  if constexpr (kLeft >= 0) {
    return V::template right<kLeft>(word[kPlace]);
  } else {
    const typename V::I high = V::template left<-kLeft>(word[kPlace]);
    return V::either(high, V::template right<32 + kLeft>(word[kPlace + 1]));
  }
}

// The bytes of each word in the opposite order.
template <class V>
TQ_INLINE typename V::I swapped(typename V::I word) {
  const typename V::I middle = V::all(0x00FF00FF);
  const typename V::I even = V::template left<8>(V::both(word, middle));
  const typename V::I odd = V::both(V::template right<8>(word), middle);
  const typename V::I bytes = V::either(even, odd);
  return V::either(V::template left<16>(bytes), V::template right<16>(bytes));
}

}  // namespace
}  // namespace tq
