// From a group's stream to the codebook's numbers, in plain loops.
#pragma once

#include "trellis_costs.h"
#include "trellis_groups.h"

namespace tq {
namespace {

// Eight weights have their windows within 64 bits.
template <int BITS>
TQ_INLINE void read_eight(const uint8_t* stream, const int8_t* codebook, int16_t* numbers) {
  uint64_t bits;
  std::memcpy(&bits, stream, sizeof bits);
  for (int i = 0; i < 8; ++i) numbers[i] = codebook[(bits >> (BITS * (i + 1))) & 0xFF];
}

struct GenericNumbers {
  const int8_t* codebook;

  template <int BITS, int G>
  TQ_INLINE void read(const Stream& stream, int16_t* numbers) const {
    for (int i = 0; i < G / 8; ++i) read_eight<BITS>(stream.at + 1 + BITS * i, codebook, numbers + 8 * i);
  }
};

}  // namespace
}  // namespace tq
