// The trellis format: what the C interface hands to one instruction set's kernels, and the exported functions.
//
// The rules are told in tq_kernels/trellis_reference.py. A row's groups are as many of 128 weights as fit, then at most
// one each of 64, 32 and 16.
#pragma once

#include "dispatch.h"

namespace tq {

struct TrellisTables {
  int32_t bits;
  const int8_t* codebook;  // by window
  const float* signs;      // nullptr where groups are not rotated
};

struct TrellisEncode {
  TqDtype dtype;
  TrellisTables tables;
  float deviation;
  const int16_t* multipliers;
  int32_t candidates;
  uint16_t* costs;  // memory for the costs of every cell, 64 bytes aligned
  const uint8_t* weight;
  int64_t rows;
  int64_t columns;
  uint8_t* codes;
  uint8_t* meta;
};

struct TrellisDecode {
  TqDtype dtype;
  TrellisTables tables;
  const uint8_t* codes;
  const uint8_t* meta;
  int64_t rows;
  int64_t columns;
  uint8_t* weight;
};

// encode returns the first row that cannot be encoded, or -1.
struct TrellisKernels {
  int64_t (*encode)(const TrellisEncode& job);
  void (*decode)(const TrellisDecode& job);
};

TQ_DECLARE_SETS(TrellisKernels, kTrellis);

constexpr int kWindows = 256;

// Cells that a coordinate falls into: one, two or four to a unit of the codebook.
constexpr int trellis_cells(int bits) { return 2 * (bits == 4 ? 144 : 192) << (bits - 2); }

}  // namespace tq

// weight: rows x columns of dtype, columns a multiple of 16; codes: columns * bits / 8 bytes a row; meta: 16 bits for
// each group of a row. codebook: 256; signs: 128 or nullptr; deviation, multipliers: see trellis_reference.py.
// bad_row: the first row that cannot be encoded where the status is TQ_NON_FINITE.
TQ_EXPORT int32_t tq_trellis_encode(int32_t instruction_set, int32_t dtype, int32_t bits, const int8_t* codebook,
                                    const float* signs, float deviation, const int16_t* multipliers,
                                    int32_t candidates, const void* weight, int64_t rows, int64_t columns,
                                    uint8_t* codes, void* meta, int64_t* bad_row);

TQ_EXPORT int32_t tq_trellis_decode(int32_t instruction_set, int32_t dtype, int32_t bits, const int8_t* codebook,
                                    const float* signs, const uint8_t* codes, const void* meta, int64_t rows,
                                    int64_t columns, void* weight);
