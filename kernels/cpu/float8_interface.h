// FP8 E4M3 weights with one scale a block: the C interface, and what it hands to one instruction set's loops.
#pragma once

#include "dispatch.h"

enum TqDivision : int32_t { TQ_DIVIDE_FLOAT32 = 0, TQ_DIVIDE_WEIGHT = 1 };

// weight: rows x columns of dtype; codes: a byte for each weight; scales: one of dtype for each block, row after row.
// Blocks are block_rows x block_columns, cut at the edges. bad_row: the first row that holds NaN or Inf, where the
// status is TQ_NON_FINITE.
TQ_EXPORT int32_t tq_float8_encode(int32_t instruction_set, int32_t dtype, int32_t division, int64_t block_rows,
                                   int64_t block_columns, const void* weight, int64_t rows, int64_t columns,
                                   uint8_t* codes, void* scales, int64_t* bad_row);

// dtype is that of the scales. weight: rows x columns, each its code times the scale of its block.
TQ_EXPORT int32_t tq_float8_decode(int32_t instruction_set, int32_t dtype, int64_t block_rows, int64_t block_columns,
                                   const uint8_t* codes, const void* scales, int64_t rows, int64_t columns,
                                   float* weight);

namespace tq {

struct Float8Shape {
  int64_t rows;
  int64_t columns;
  int64_t block_rows;
  int64_t block_columns;
};

struct Float8Encode {
  Float8Shape shape;
  const uint8_t* weight;
  uint8_t* codes;
  uint8_t* scales;
};

struct Float8Decode {
  Float8Shape shape;
  const uint8_t* codes;
  const uint8_t* scales;
  float* weight;
};

// encode: by dtype and division; returns the first row that is not finite, or -1. decode: by dtype of the scales.
struct Float8Kernels {
  int64_t (*encode[3][2])(const Float8Encode& job);
  void (*decode[3])(const Float8Decode& job);
};

TQ_DECLARE_SETS(Float8Kernels, kFloat8);

}  // namespace tq
