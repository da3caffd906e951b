// MLX's affine format: what the C interface hands to one instruction set's kernels, and the exported functions.
//
// A row's groups follow one another without a gap, so that a matrix is a plain list of groups here.
#pragma once

#include "dispatch.h"

namespace tq {

constexpr int kAffineLargestGroup = 128;
constexpr int kAffineWidestCode = 8;

struct AffineShape {
  TqDtype dtype;
  int32_t bits;
  int32_t group_size;
  int64_t groups;
};

struct AffineEncode {
  AffineShape shape;
  bool least_squares;
  const uint8_t* weight;
  uint8_t* words;
  uint8_t* scales;
  uint8_t* biases;
};

struct AffineDecode {
  AffineShape shape;
  const uint8_t* words;
  const uint8_t* scales;
  const uint8_t* biases;
  uint8_t* weight;
};

// encode returns the first group that is not finite or too wide, or -1.
struct AffineKernels {
  int64_t (*encode)(const AffineEncode& job);
  void (*decode)(const AffineDecode& job);
};

TQ_DECLARE_SETS(AffineKernels, kAffine);

}  // namespace tq

// weight: rows x columns of dtype, columns a multiple of group_size; words: uint32, columns * bits / 32 a row; scales and
// biases: dtype, columns / group_size a row. bad_row: the first row that cannot be encoded where the status is
// TQ_NON_FINITE.
TQ_EXPORT int32_t tq_affine_encode(int32_t instruction_set, int32_t dtype, int32_t bits, int32_t group_size,
                                   int32_t least_squares, const void* weight, int64_t rows, int64_t columns,
                                   void* words, void* scales, void* biases, int64_t* bad_row);

// weight: float32, rows x columns.
TQ_EXPORT int32_t tq_affine_decode(int32_t instruction_set, int32_t dtype, int32_t bits, int32_t group_size,
                                   const void* words, const void* scales, const void* biases, int64_t rows,
                                   int64_t columns, void* weight);
