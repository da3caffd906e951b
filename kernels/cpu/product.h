// Products of packed weights and a few vectors of activations: what the C interface hands to one instruction set's
// kernels, and the exported function. The rules are told in tq_kernels/product_reference.py.
//
// Left out: decoding, which is each format's own family and the better way where tokens are hundreds.
#pragma once

#include "dispatch.h"

// How codes become whole numbers: by the windows of a trellis, by a table of 2^bits entries, or as they are.
enum TqProductCodes : int32_t { TQ_CODES_TRELLIS = 0, TQ_CODES_TABLE = 1, TQ_CODES_BYTES = 2 };
// What a group's scale is stored as: a trellis field, float32, float16.
enum TqProductScales : int32_t { TQ_SCALES_TRELLIS = 0, TQ_SCALES_F32 = 1, TQ_SCALES_F16 = 2 };
// How the columns behind the last whole group are stored: as groups of 64, 32 and 16; as a group padded to the full
// size; as a short group.
enum TqProductTail : int32_t { TQ_TAIL_SMALLER = 0, TQ_TAIL_PADDED = 1, TQ_TAIL_SHORT = 2 };

// A format of weights. table: 256 numbers by window or 2^bits by code, nullptr for bytes. signs: group_size numbers
// before and after the rotation of activations, nullptr for none. factors: by which a group's scale is multiplied,
// of sizes 128, 64, 32 and 16.
struct TqProductFormat {
  int32_t codes;
  int32_t scales;
  int32_t tail;
  int32_t bits;
  int32_t group_size;
  int32_t rotated;
  const int8_t* table;
  const float* signs_before;
  const float* signs_after;
  float factors[4];
};

namespace tq {

constexpr int kMostTokens = 8;    // multiplied with a group while it is decoded
constexpr int kTurnedRows = 16;   // decoded together for many tokens
constexpr int kBlocks = 2;        // of turned rows, multiplied together
constexpr int kProductLanes = 16;  // sums of a row
constexpr int kGreatestByte = 127;
constexpr int kUpperByte = 255;    // what an upper byte counts: lower ones are then from -127 to 127

// Groups of one size that lie side by side in a row.
struct ProductRun {
  int64_t groups;
  int64_t size;       // columns of a group
  int64_t column;     // where the first group begins
  int64_t code;       // its first byte in a row's codes
  int64_t group;      // its number
  int64_t slot;       // where its activations begin in a prepared token
  float factor;

  bool is_wide() const { return size > 64; }
  int64_t slot_bytes() const { return is_wide() ? 128 : 64; }
};

// Where everything of a row lies.
struct ProductRows {
  ProductRun run[4];
  int32_t runs;
  int64_t columns;
  int64_t groups;
  int64_t code_bytes;   // of a row
  int64_t scale_bytes;  // of a row
  int64_t slots;        // bytes of a prepared token's activations
};

// Activations as whole numbers, token by token. Wide ones are 255 times a byte plus another.
struct Prepared {
  int8_t* values;        // slots a token; of wide ones, slots of upper bytes and then slots of lower ones
  int32_t* corrections;  // kProductLanes a group: -128 times the lane's sum
  float* scales;         // one a group
  int32_t* totals;       // one a group: the sum of its corrections
};

struct ProductJob {
  const TqProductFormat* format;
  ProductRows rows;
  TqDtype dtype;  // of activations and results
  int32_t planes;  // bytes of a whole number: 1 or 2
  const uint8_t* codes;
  const uint8_t* scales;
  const uint8_t* activations;
  Prepared prepared;
  int64_t all_rows;  // of a matrix

  int64_t result_bytes() const { return all_rows * (dtype == TQ_F32 ? 4 : 2); }
};

// Tokens that meet the same matrix. Each has a row of results, of all rows' numbers; the first one's begins at `results`.
struct ProductBatch {
  int64_t matrix;
  int64_t tokens;
  const int64_t* token;
  uint8_t* results;
};

// Multiplies rows [first, last) of the batch's matrix; memory has room for what memory_bytes says.
using Multiply = void (*)(const ProductJob& job, const ProductBatch& batch, int64_t first, int64_t last,
                          uint8_t* memory);

// prepare: of tokens [first, last). by_lanes: of kMostTokens at most. by_groups: of any number.
struct ProductKernels {
  void (*prepare)(const ProductJob& job, int64_t first, int64_t last);
  Multiply by_lanes;
  Multiply by_groups;
};

// Of a piece's scales, and of decoded rows with theirs.
inline int64_t memory_bytes(const ProductRows& rows, int64_t piece_rows) {
  const int64_t turned = kBlocks * kTurnedRows * (rows.slots + 4 * rows.groups);
  return turned + 4 * (piece_rows + kBlocks * kTurnedRows) * rows.groups;
}

TQ_DECLARE_SETS(ProductKernels, kProduct);
#if defined(__x86_64__)
// AVX-512 with byte permutations and dot products of bytes (VBMI, VNNI).
extern const ProductKernels kProductBytes_avx512;
#endif

}  // namespace tq

// Row p of `results` becomes the product of matrix matrices[p] and token tokens[p], for each of `pairs` pairs.
//
// codes, scales: matrices of rows x columns, one behind the other; activations: all_tokens x columns of dtype (bfloat16
// or float32); results: pairs x rows of dtype. planes: bytes that activations are rounded to, 1 or 2. by_groups: the
// order of sums, 0 or 1. matrices, tokens: nullptr for 0 and for 0, 1, 2, ... extensions: 0 to do without instructions
// that not every processor of the set has.
TQ_EXPORT int32_t tq_product(const TqProductFormat* format, int32_t instruction_set, int32_t extensions, int32_t dtype,
                             int32_t planes, int32_t by_groups, const void* codes, const void* scales, int64_t all_matrices, int64_t rows, int64_t columns,
                             const void* activations, int64_t all_tokens, const int64_t* matrices,
                             const int64_t* tokens, int64_t pairs, void* results, int32_t threads);

// 1 where sums by groups are fast: with the extensions of AVX-512.
TQ_EXPORT int32_t tq_product_groups_are_fast(int32_t instruction_set);
