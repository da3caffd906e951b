// INT4 weights with one scale a group: the C interface, and what it hands to one instruction set's loops.
#pragma once

#include "dispatch.h"

enum TqInt4Scale : int32_t { TQ_INT4_ABSMAX = 0, TQ_INT4_SEARCH = 1, TQ_INT4_SIGNED = 2 };

// weight: rows x columns of dtype, columns a multiple of group_size, which is 32, 64 or 128.
// words: rows x columns / 8, four bits a weight, the first in the lowest; scales: rows x columns / group_size of dtype.
// bad_row: the first row with NaN, Inf or a value too large, where the status is TQ_NON_FINITE.
TQ_EXPORT int32_t tq_int4_encode(int32_t instruction_set, int32_t dtype, int32_t scale, int32_t group_size,
                                 const void* weight, int64_t rows, int64_t columns, int32_t* words, void* scales,
                                 int64_t* bad_row);

// dtype is that of the scales. weight: rows x columns, each its number times the scale of its group.
TQ_EXPORT int32_t tq_int4_decode(int32_t instruction_set, int32_t dtype, int32_t group_size, const int32_t* words,
                                 const void* scales, int64_t rows, int64_t columns, float* weight);

namespace tq {

constexpr int kInt4GroupSizes = 3;
constexpr int kInt4Scales = 3;

// Groups follow each other in memory, whatever the row, so rows are not among what the loops see.
struct Int4Encode {
  int64_t groups;
  const uint8_t* weight;
  uint8_t* words;
  uint8_t* scales;
};

struct Int4Decode {
  int64_t groups;
  const uint8_t* words;
  const uint8_t* scales;
  float* weight;
};

// encode: by dtype, scale and group size (32, 64, 128); returns the first group that is not finite, or -1.
// decode: by dtype of the scales and group size.
struct Int4Kernels {
  int64_t (*encode[3][kInt4Scales][kInt4GroupSizes])(const Int4Encode& job);
  void (*decode[3][kInt4GroupSizes])(const Int4Decode& job);
};

TQ_DECLARE_SETS(Int4Kernels, kInt4);

}  // namespace tq
