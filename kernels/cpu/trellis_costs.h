// What each window costs in each cell, in the order in which an instruction set reads it.
#pragma once

#include "trellis.h"
#include "unroll.h"

namespace tq {
namespace {

// Squared distances, counted in half cells, times this / 256: small enough that no path of use saturates.
constexpr int kCostFactor[] = {16, 6, 3};  // of 2, 3 and 4 bits

// A trellis: states are what a window has in common with the next one, ways the windows that lead to a state.
template <int BITS>
struct Trellis {
  static constexpr int kWays = 1 << BITS;
  static constexpr int kStates = 1 << (8 - BITS);
  static constexpr int kCells = trellis_cells(BITS);
};

// Paths::place(way, state) tells where the window state * kWays + way stands among the 256 of a cell.
template <class Paths, int BITS>
TQ_NOINLINE void fill_costs(const int8_t* codebook, uint16_t* costs) {
  using Kind = Trellis<BITS>;
  constexpr int kMost = (1 << (16 - BITS)) - 1;
  int32_t numbers[kWindows], ways[kWindows];
  for (int window = 0; window < kWindows; ++window) {
    const int way = window % Kind::kWays, at = Paths::place(way, window / Kind::kWays);
    numbers[at] = codebook[window] * (1 << (BITS - 1));
    ways[at] = way;
  }
  for (int cell = 0; cell < Kind::kCells; ++cell) {
    const int32_t middle = 2 * (cell - Kind::kCells / 2) + 1;
    int32_t squares[kWindows], least = INT32_MAX;
    for (int at = 0; at < kWindows; ++at) {
      squares[at] = (middle - numbers[at]) * (middle - numbers[at]);
      least = squares[at] < least ? squares[at] : least;
    }
    uint16_t* const to = costs + cell * kWindows;
    for (int at = 0; at < kWindows; ++at) {
      const int32_t cost = ((squares[at] - least) * kCostFactor[BITS - 2] + 128) >> 8;
      to[at] = static_cast<uint16_t>((cost < kMost ? cost : kMost) << BITS | ways[at]);
    }
  }
}

}  // namespace
}  // namespace tq
