// Loops written out at compile time, so that arrays of vectors become registers whatever the compiler's unroller does.
#pragma once

#include <utility>

#define TQ_INLINE inline __attribute__((always_inline))
#define TQ_NOINLINE __attribute__((noinline))
#define TQ_LAMBDA __attribute__((always_inline))

namespace tq {
namespace {

template <int I>
struct Index {
  constexpr operator int() const { return I; }
};

template <class Body, int... I>
TQ_INLINE void each_of(Body& body, std::integer_sequence<int, I...>) {
  (body(Index<I>{}), ...);
}

template <int Count, class Body>
TQ_INLINE void each(Body&& body) {
  each_of(body, std::make_integer_sequence<int, Count>{});
}

}  // namespace
}  // namespace tq
