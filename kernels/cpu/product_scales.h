// Scales of groups as float32. Plain loops: compilers make vectors of them.
#pragma once

#include "floats.h"
#include "product.h"

namespace tq {
namespace {

inline void read_halves(const uint8_t* from, int64_t count, uint16_t mask, int shift, float* scales) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, from + 2 * i, sizeof bits);
    scales[i] = half_to_float(static_cast<uint16_t>((bits & mask) << shift));
  }
}

// A trellis scale comes 2^16 times too great: the format's factors make up for it.
inline void read_scales(int32_t kind, int32_t bits, const uint8_t* stored, int64_t count, float* scales) {
  if (kind == TQ_SCALES_F32) {
    std::memcpy(scales, stored, static_cast<size_t>(4 * count));
  } else if (kind == TQ_SCALES_F16) {
    read_halves(stored, count, 0xFFFF, 0, scales);
  } else {
    read_halves(stored, count, static_cast<uint16_t>((1u << (8 + bits)) - 1), 7 - bits, scales);
  }
}

}  // namespace
}  // namespace tq
