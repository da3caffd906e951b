// FP4 E2M1 weights with one scale a group: the C interface, and what it hands to one instruction set's loops.
#pragma once

#include "dispatch.h"

// MX: groups of 32, scales that are powers of two. NV: groups of 16, E4M3 scales under one global scale.
enum TqFloat4Kind : int32_t { TQ_FLOAT4_MX = 0, TQ_FLOAT4_NV = 1 };

// weight: rows x columns of dtype, columns a multiple of the group; codes: rows x columns / 2, the first weight in the
// low four bits; scales: a byte for each group. global_scale: positive and finite, not read for MX.
// bad_row: the first row with NaN, Inf or a value too large, where the status is TQ_NON_FINITE.
TQ_EXPORT int32_t tq_float4_encode(int32_t instruction_set, int32_t dtype, int32_t kind, float global_scale,
                                   const void* weight, int64_t rows, int64_t columns, uint8_t* codes, uint8_t* scales,
                                   int64_t* bad_row);

// weight: rows x columns, each its number times the scale of its group.
TQ_EXPORT int32_t tq_float4_decode(int32_t instruction_set, int32_t kind, float global_scale, const uint8_t* codes,
                                   const uint8_t* scales, int64_t rows, int64_t columns, float* weight);

namespace tq {

// Groups follow each other in memory, whatever the row, so rows are not among what the loops see.
struct Float4Encode {
  int64_t groups;
  float global_scale;
  const uint8_t* weight;
  uint8_t* codes;
  uint8_t* scales;
};

struct Float4Decode {
  int64_t groups;
  float global_scale;
  const uint8_t* codes;
  const uint8_t* scales;
  float* weight;
};

// encode: by dtype and kind; returns the first group that is refused, or -1. decode: by kind.
struct Float4Kernels {
  int64_t (*encode[3][2])(const Float4Encode& job);
  void (*decode[2])(const Float4Decode& job);
};

TQ_DECLARE_SETS(Float4Kernels, kFloat4);

}  // namespace tq
