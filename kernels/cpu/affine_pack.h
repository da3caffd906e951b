// Codes as a little-endian bit stream: 32 codes fill as many uint32 as a code has bits, lane by lane.
#pragma once

#include "affine_lanes.h"

namespace tq {
namespace {

template <int BITS>
inline void pack(const Words* codes, Words* words) {
  for (int i = 0; i < BITS; ++i) words[i] = Words{};
#pragma GCC unroll 32
  for (int i = 0; i < 32; ++i) {
    const int place = i * BITS / 32, offset = i * BITS % 32;
    words[place] |= codes[i] << offset;
    if (offset + BITS > 32) words[place + 1] |= codes[i] >> (32 - offset);
  }
}

template <int BITS>
inline void unpack(const Words* words, Words* codes) {
#pragma GCC unroll 32
  for (int i = 0; i < 32; ++i) {
    const int place = i * BITS / 32, offset = i * BITS % 32;
    Words code = words[place] >> offset;
    if (offset + BITS > 32) code |= words[place + 1] << (32 - offset);
    codes[i] = code & ((1u << BITS) - 1);
  }
}

inline void pack(int bits, const Words* codes, Words* words) {
  switch (bits) {
    case 2: return pack<2>(codes, words);
    case 3: return pack<3>(codes, words);
    case 4: return pack<4>(codes, words);
    case 5: return pack<5>(codes, words);
    case 6: return pack<6>(codes, words);
    default: return pack<8>(codes, words);
  }
}

inline void unpack(int bits, const Words* words, Words* codes) {
  switch (bits) {
    case 2: return unpack<2>(words, codes);
    case 3: return unpack<3>(words, codes);
    case 4: return unpack<4>(words, codes);
    case 5: return unpack<5>(words, codes);
    case 6: return unpack<6>(words, codes);
    default: return unpack<8>(words, codes);
  }
}

}  // namespace
}  // namespace tq
