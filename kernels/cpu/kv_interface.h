// Head vectors of a key-value cache: the C interface, and what it hands to one instruction set's loops.
#pragma once

#include "dispatch.h"

enum TqKvScale : int32_t { TQ_KV_LENGTH = 0, TQ_KV_LEAST_SQUARES = 1 };

// A vector is `blocks` blocks of `block` numbers, a power of two from 16 to 1024; bits from 2 to 8.
// levels: 2^bits; boundaries: one less; signs: block, +1 or -1.
struct TqKvCodec {
  int32_t bits, block, blocks, scale;
  const float* levels;
  const float* boundaries;
  const float* signs;
};

// Vectors along three axes, the last running fastest. Strides in bytes, those of vectors in numbers; where something is
// written it lies without gaps and its strides are not looked at.
struct TqKvShape {
  int64_t counts[3];
  int64_t codes[3];
  int64_t scales[3];
  int64_t vectors[3];
};

// codes: blocks * block * bits / 8 bytes a vector. scales: blocks halves a vector. vectors: of dtype.
TQ_EXPORT int32_t tq_kv_encode(int32_t instruction_set, const TqKvCodec* codec, int32_t dtype, const TqKvShape* shape,
                               const void* vectors, uint8_t* codes, void* scales, int32_t threads);
TQ_EXPORT int32_t tq_kv_decode(int32_t instruction_set, const TqKvCodec* codec, int32_t dtype, const TqKvShape* shape,
                               const uint8_t* codes, const void* scales, void* vectors, int32_t threads);

namespace tq {

constexpr int kKvLargestBlock = 1024;
constexpr int kKvWidths = 7;
constexpr float kKvTiny = 0x1p-126f;

using KvCodec = TqKvCodec;
using KvShape = TqKvShape;

struct KvEncode {
  const void* vectors;
  uint8_t* codes;
  uint8_t* scales;
};

struct KvDecode {
  const uint8_t* codes;
  const uint8_t* scales;
  void* vectors;
};

// Vectors first to last - 1. encode: by dtype. decode: by dtype and bits - 2.
struct KvKernels {
  void (*encode[3])(const KvCodec& codec, const KvShape& shape, const KvEncode& job, int64_t first, int64_t last);
  void (*decode[3][kKvWidths])(const KvCodec& codec, const KvShape& shape, const KvDecode& job, int64_t first,
                               int64_t last);
};

TQ_DECLARE_SETS(KvKernels, kKv);

}  // namespace tq
