// Steps through the trellis with vectors of eight sums, which every 64-bit processor has.
#pragma once

#include "trellis_paths.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace tq {
namespace {

typedef uint16_t Eight __attribute__((vector_size(16)));

TQ_INLINE Eight saturated_sum(Eight a, Eight b) {
#if defined(__SSE2__)
  return (Eight)_mm_adds_epu16((__m128i)a, (__m128i)b);
#elif defined(__ARM_NEON)
  return (Eight)vqaddq_u16((uint16x8_t)a, (uint16x8_t)b);
#else
  const Eight sum = a + b;
  return sum | (Eight)(sum < a);
#endif
}

TQ_INLINE Eight least_of(Eight a, Eight b) {
#if defined(__SSE2__)
  return a - (Eight)_mm_subs_epu16((__m128i)a, (__m128i)b);
#elif defined(__ARM_NEON)
  return (Eight)vminq_u16((uint16x8_t)a, (uint16x8_t)b);
#else
  return a < b ? a : b;
#endif
}

// Lane i takes number I[i] of the two vectors' 16.
template <int... I>
TQ_INLINE Eight picked(Eight a, Eight b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, Eight{I...});
#endif
}

// ROWS lanes from lane FIRST on, again and again.
template <int FIRST, int ROWS, int... I>
TQ_INLINE Eight repeated(Eight a, std::integer_sequence<int, I...>) {
  return picked<(FIRST + I % ROWS)...>(a, a);
}

template <int BITS>
struct GenericPaths {
  static constexpr int kWays = Trellis<BITS>::kWays;
  static constexpr int kStates = Trellis<BITS>::kStates;
  static constexpr int kVectors = kStates / 8;
  static constexpr int kRows = kStates > kWays ? kStates / kWays : 1;  // states before one state's way
  static constexpr int kTogether = 2;

  struct Metrics {
    Eight at[kVectors];
  };

  static constexpr int place(int way, int state) { return way * kStates + state; }

  // State m is reached from the states (m * kWays + way) % kStates. Sorted, those of one way lie side by side.
  TQ_INLINE Metrics step(const Metrics& sums, const uint16_t* costs) const {
    const Metrics before = sorted<kRows>(sums);
    Metrics least;
    each<kWays>([&](auto way) TQ_LAMBDA {
      each<kVectors>([&](auto v) TQ_LAMBDA {
        constexpr int kFirst = way * kRows + (kRows > 8 ? v % 2 * 8 : 0);
        constexpr int kLanes = kRows > 8 ? 8 : kRows;
        const Eight from = repeated<kFirst % 8, kLanes>(before.at[kFirst / 8], std::make_integer_sequence<int, 8>{});
        const Eight sum = saturated_sum(from, eight_of(costs + way * kStates + 8 * v));
        least.at[v] = way == 0 ? sum : least_of(least.at[v], sum);
      });
    });
    return least;
  }

  // Lets the first half and the second half alternate until the numbers that stood kWays apart are neighbours.
  template <int ROWS>
  static TQ_INLINE Metrics sorted(const Metrics& sums) {
    if constexpr (ROWS == 1) {
      return sums;
    } else {
      Metrics next;
      each<kVectors / 2>([&](auto v) TQ_LAMBDA {
        const Eight low = sums.at[v], high = sums.at[v + kVectors / 2];
        next.at[2 * v] = picked<0, 8, 1, 9, 2, 10, 3, 11>(low, high);
        next.at[2 * v + 1] = picked<4, 12, 5, 13, 6, 14, 7, 15>(low, high);
      });
      return sorted<ROWS / 2>(next);
    }
  }

  static TQ_INLINE Eight eight_of(const uint16_t* costs) {
    Eight value;
    std::memcpy(&value, costs, sizeof value);
    return value;
  }

  TQ_INLINE Metrics bare(Metrics sums) const {
    each<kVectors>([&](auto v) TQ_LAMBDA { sums.at[v] &= static_cast<uint16_t>(-kWays); });
    return sums;
  }

  TQ_INLINE Metrics lowered(Metrics sums) const {
    Eight joined = sums.at[0];
    each<kVectors - 1>([&](auto v) TQ_LAMBDA { joined = least_of(joined, sums.at[v + 1]); });
    uint16_t least = joined[0];
    for (int i = 1; i < 8; ++i) least = joined[i] < least ? joined[i] : least;
    each<kVectors>([&](auto v) TQ_LAMBDA { sums.at[v] -= least; });
    return sums;
  }

  TQ_INLINE void keep(const Metrics& first, const Metrics& second, uint8_t* ways) const {
    each<kVectors>([&](auto v) TQ_LAMBDA {
      const Eight both = (first.at[v] & static_cast<uint16_t>(0xFF)) | second.at[v] << 8;
      std::memcpy(ways + 16 * v, &both, sizeof both);
    });
  }

  static int least_state(const Metrics& sums) {
    uint16_t at[kStates];
    std::memcpy(at, sums.at, sizeof at);
    int least = 0;
    for (int state = 1; state < kStates; ++state) least = at[state] < at[least] ? state : least;
    return least;
  }
};

}  // namespace
}  // namespace tq
