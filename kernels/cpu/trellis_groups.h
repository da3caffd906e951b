// Where the groups of a matrix lie: runs of groups of one size, and the stream that a group's bits form.
#pragma once

#include <cstdint>
#include <cstring>

namespace tq {
namespace {

constexpr int kLargestGroup = 128;
constexpr int kSmallestGroup = 16;
constexpr int kMostBits = 4;
constexpr int kMetaBytes = 2;

// A group's number and codes, with room behind for whole vectors to be read and written.
struct alignas(32) Stream {
  uint8_t at[kMetaBytes + kLargestGroup * kMostBits / 8 + 30];
};

// The groups of one size, row by row; group i of them lies in row i / a_row.
struct Run {
  int64_t columns;  // of a row
  int64_t column;   // where the first group of a row begins
  int64_t a_row;    // groups of this size in a row
  int64_t before;   // groups of a row that come earlier
  int64_t all;      // groups of any size in a row

  int64_t row(int64_t i) const { return i / a_row; }
  // Index of the group's first weight in the matrix.
  int64_t weight(int64_t i, int size) const { return row(i) * columns + column + i % a_row * size; }
  int64_t number(int64_t i) const { return row(i) * all + before + i % a_row; }
};

inline int64_t groups_in_a_row(int64_t columns) {
  return columns / kLargestGroup + __builtin_popcountll(static_cast<uint64_t>(columns % kLargestGroup));
}

inline Run run_of(int64_t columns, int size) {
  const int64_t whole = columns / kLargestGroup, rest = columns % kLargestGroup;
  const int64_t all = groups_in_a_row(columns);
  if (size == kLargestGroup) return {columns, 0, whole, 0, all};
  const int64_t larger = rest & ~static_cast<int64_t>(2 * size - 1);
  return {columns, whole * kLargestGroup + larger, rest & size ? 1 : 0,
          whole + __builtin_popcountll(static_cast<uint64_t>(larger)), all};
}

}  // namespace
}  // namespace tq
