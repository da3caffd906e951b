// Uniform quantisation: the C interface, and what it hands to one instruction set's loops.
#pragma once

#include "dispatch.h"

enum TqUniformScale : int32_t { TQ_UNIFORM_ABSMAX = 0, TQ_UNIFORM_SEARCH = 1 };

// bits: 8 or 4; group_size: 32, 64, 128 or 256. weight: rows x columns of dtype. codes: rows x columns bytes at 8 bits,
// rows x ceil(columns / 2) at 4, the even column in the low half; scales: rows x ceil(columns / group_size) halves.
// bad_row: the first row with NaN, Inf or a value too large, where the status is TQ_NON_FINITE.
TQ_EXPORT int32_t tq_uniform_encode(int32_t instruction_set, int32_t dtype, int32_t bits, int32_t group_size,
                                    int32_t scale, const void* weight, int64_t rows, int64_t columns, void* codes,
                                    void* scales, int64_t* bad_row);

// dtype is that of the weight. weight: each code times the scale of its group, rounded to nearest even.
TQ_EXPORT int32_t tq_uniform_decode(int32_t instruction_set, int32_t dtype, int32_t bits, int32_t group_size,
                                    const void* codes, const void* scales, int64_t rows, int64_t columns, void* weight);

namespace tq {

struct UniformShape {
  int64_t rows;
  int64_t columns;
  int64_t group;  // columns in a group
  int64_t per_row() const { return (columns + group - 1) / group; }
};

struct UniformEncode {
  UniformShape shape;
  const uint8_t* weight;
  uint8_t* codes;
  uint8_t* scales;
};

struct UniformDecode {
  UniformShape shape;
  const uint8_t* codes;
  const uint8_t* scales;
  uint8_t* weight;
};

// encode: by dtype, bits (8, 4) and scale; returns the first row that is refused, or -1. decode: by dtype and bits.
struct UniformKernels {
  int64_t (*encode[3][2][2])(const UniformEncode& job);
  void (*decode[3][2])(const UniformDecode& job);
};

TQ_DECLARE_SETS(UniformKernels, kUniform);

}  // namespace tq
