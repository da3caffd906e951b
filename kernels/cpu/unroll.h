// Loops written out at compile time, so that arrays of vectors become registers whatever the compiler's unroller does.
#pragma once

#define TQ_INLINE inline __attribute__((always_inline))
#define TQ_LAMBDA __attribute__((always_inline))

namespace tq {
namespace {

template <int I>
struct Index {
  constexpr operator int() const { return I; }
};

template <int Stop, int I = 0, class Body>
TQ_INLINE void each(Body&& body) {
  if constexpr (I < Stop) {
    body(Index<I>{});
    each<Stop, I + 1>(body);
  }
}

}  // namespace
}  // namespace tq
