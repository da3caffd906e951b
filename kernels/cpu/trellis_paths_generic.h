// Steps through the trellis in plain loops, which compilers turn into vectors of any instruction set.
#pragma once

#include "trellis_paths.h"

namespace tq {
namespace {

template <int BITS>
struct GenericPaths {
  static constexpr int kWays = Trellis<BITS>::kWays;
  static constexpr int kStates = Trellis<BITS>::kStates;
  static constexpr int kTogether = 2;

  struct Metrics {
    uint16_t at[kStates];
  };

  static constexpr int place(int way, int state) { return way * kStates + state; }

  // State m is reached from the states (m * kWays + way) % kStates: a pattern that repeats.
  Metrics step(const Metrics& sums, const uint16_t* costs) const {
    Metrics least;
    for (int way = 0; way < kWays; ++way) {
      uint16_t before[kStates];
      for (int state = 0; state < kStates; ++state) before[state] = sums.at[(state * kWays + way) % kStates];
      for (int state = 0; state < kStates; ++state) {
        const uint16_t plain = static_cast<uint16_t>(before[state] + costs[way * kStates + state]);
        const uint16_t sum = plain < before[state] ? 0xFFFF : plain;
        least.at[state] = way == 0 || sum < least.at[state] ? sum : least.at[state];
      }
    }
    return least;
  }

  Metrics bare(Metrics sums) const {
    for (int state = 0; state < kStates; ++state) sums.at[state] &= static_cast<uint16_t>(~(kWays - 1));
    return sums;
  }

  Metrics lowered(Metrics sums) const {
    uint16_t least = 0xFFFF;
    for (int state = 0; state < kStates; ++state) least = sums.at[state] < least ? sums.at[state] : least;
    for (int state = 0; state < kStates; ++state) sums.at[state] = static_cast<uint16_t>(sums.at[state] - least);
    return sums;
  }

  void keep(const Metrics& first, const Metrics& second, uint8_t* ways) const {
    for (int state = 0; state < kStates; ++state) {
      ways[2 * state] = static_cast<uint8_t>(first.at[state]);
      ways[2 * state + 1] = static_cast<uint8_t>(second.at[state]);
    }
  }

  static int least_state(const Metrics& sums) {
    int least = 0;
    for (int state = 1; state < kStates; ++state) least = sums.at[state] < sums.at[least] ? state : least;
    return least;
  }
};

}  // namespace
}  // namespace tq
