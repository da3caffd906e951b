// Head vectors of a key-value cache as packed codes with a half-precision scale a block: the loops. The rules are told in
// tq_kernels/kv_reference.py, which these follow to the bit: same butterflies, same trees of sums.
//
// A vector is worked on by itself, its numbers in the lanes. Left out: threads, and what an argument may be.
#pragma once

#include <cmath>

#include "kv_interface.h"
#include "kv_lanes.h"

namespace tq {
namespace {

// Where vector number `index` lies, the last axis running fastest.
inline int64_t place_of(const KvShape& shape, const int64_t (&strides)[3], int64_t index) {
  const int64_t inner = index % shape.counts[2], rest = index / shape.counts[2];
  return rest / shape.counts[1] * strides[0] + rest % shape.counts[1] * strides[1] + inner * strides[2];
}

// A code is cut into fields of 4, 2 and 1 bits, highest first; calls visit(lowest bit, width, first byte).
template <class Visit>
void each_field(int bits, int block, Visit visit) {
  if (bits == 8) return visit(0, 8, 0);
  int at = 0;
  for (int width = 4; width >= 1; width /= 2) {
    if ((bits & width) == 0) continue;
    visit(bits & (width - 1), width, at);
    at += block * width / 8;
  }
}

// to[i] becomes, or gets besides, the bits of from[i] that `shift` and `mask` pick, put at `lowest`: a run of them.
template <class Run, bool kFirst>
inline void spread_run(const uint8_t* from, int shift, int mask, int lowest, uint8_t* to) {
  Run bytes, before = {};
  std::memcpy(&bytes, from, sizeof bytes);
  if constexpr (!kFirst) std::memcpy(&before, to, sizeof before);
  bytes = before | (((bytes >> static_cast<uint8_t>(shift)) & static_cast<uint8_t>(mask)) << static_cast<uint8_t>(lowest));
  std::memcpy(to, &bytes, sizeof bytes);
}

// Counts are powers of two, so that one length of runs does it all: what is left over would take most of the time.
template <bool kFirst>
inline void spread(const uint8_t* from, int count, int shift, int mask, int lowest, uint8_t* to) {
  if (count >= 64) {
    for (int i = 0; i < count; i += 64) spread_run<Bytes64, kFirst>(from + i, shift, mask, lowest, to + i);
  } else if (count >= 16) {
    for (int i = 0; i < count; i += 16) spread_run<Bytes16, kFirst>(from + i, shift, mask, lowest, to + i);
  } else {
    for (int i = 0; i < count; ++i) {
      to[i] = static_cast<uint8_t>((kFirst ? 0 : to[i]) | (((from[i] >> shift) & mask) << lowest));
    }
  }
}

template <int kBits>
void unpack(const uint8_t* packed, int block, uint8_t* codes) {
  constexpr int kHighest = kBits == 8 ? 8 : kBits & 4 ? 4 : kBits & 2 ? 2 : 1;
  each_field(kBits, block, [&](int lowest, int width, int at) {
    const int count = block * width / 8, mask = (1 << width) - 1;
    for (int part = 0; part < 8 / width; ++part) {
      uint8_t* to = codes + part * count;
      if (width == kHighest) spread<true>(packed + at, count, part * width, mask, lowest, to);
      else spread<false>(packed + at, count, part * width, mask, lowest, to);
    }
  });
}

inline void pack(const uint8_t* codes, int bits, int block, uint8_t* packed) {
  std::memset(packed, 0, static_cast<size_t>(block * bits / 8));
  each_field(bits, block, [&](int lowest, int width, int at) {
    const int count = block * width / 8, mask = (1 << width) - 1;
    for (int part = 0; part < 8 / width; ++part) {
      const uint8_t* from = codes + part * count;
      for (int i = 0; i < count; ++i) {
        packed[at + i] = static_cast<uint8_t>(packed[at + i] | (((from[i] >> lowest) & mask) << (part * width)));
      }
    }
  });
}

// Stages of whole vectors, two at a time where there are two: fewer trips to memory, the same sums.
inline void outer_stages(float* numbers, int block) {
  int half = kLanes;
  for (; 4 * half <= block; half *= 4) {
    for (int start = 0; start < block; start += 4 * half) {
      for (int i = start; i < start + half; i += kLanes) {
        const Floats a = load(numbers + i), b = load(numbers + i + half);
        const Floats c = load(numbers + i + 2 * half), d = load(numbers + i + 3 * half);
        const Floats ab = a + b, a_b = a - b, cd = c + d, c_d = c - d;
        store(numbers + i, ab + cd);
        store(numbers + i + half, a_b + c_d);
        store(numbers + i + 2 * half, ab - cd);
        store(numbers + i + 3 * half, a_b - c_d);
      }
    }
  }
  if (half == block) return;
  for (int i = 0; i < half; i += kLanes) {
    const Floats a = load(numbers + i), b = load(numbers + i + half);
    store(numbers + i, a + b);
    store(numbers + i + half, a - b);
  }
}

// Halves added to halves. Spoils the terms.
inline float tree_sum(float* terms, int block) {
  for (int half = block / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) terms[i] += terms[i + half];
  }
  return terms[0];
}

template <class Type, int kBits>
void decode_block(const KvCodec& codec, const uint8_t* packed, float factor, typename Type::Word* vector) {
  alignas(64) uint8_t codes[kKvLargestBlock];
  alignas(64) float numbers[kKvLargestBlock];
  unpack<kBits>(packed, codec.block, codes);
  const LookUp<kBits> levels(codec.levels);
  for (int i = 0; i < codec.block; i += kLanes) store(numbers + i, inner_stages(levels(codes + i) * factor));
  outer_stages(numbers, codec.block);
  for (int i = 0; i < codec.block; ++i) vector[i] = Type::narrow(numbers[i] * codec.signs[i]);
}

template <class Type, int kBits>
void decode_vectors(const KvCodec& codec, const KvShape& shape, const KvDecode& job, int64_t first, int64_t last) {
  using Word = typename Type::Word;
  Word* vector = static_cast<Word*>(job.vectors) + first * codec.blocks * codec.block;
  const float root = std::sqrt(static_cast<float>(codec.block));
  const int block_bytes = codec.block * kBits / 8;
  for (int64_t index = first; index < last; ++index) {
    const uint8_t* codes = job.codes + place_of(shape, shape.codes, index);
    const uint8_t* scales = job.scales + place_of(shape, shape.scales, index);
    for (int block = 0; block < codec.blocks; ++block, vector += codec.block) {
      uint16_t half;
      std::memcpy(&half, scales + 2 * block, sizeof half);
      decode_block<Type, kBits>(codec, codes + block * block_bytes, half_to_float(half) / root, vector);
    }
  }
}

// The number of boundaries that are below; NaN is above all.
inline uint8_t code_of(const float* boundaries, int bits, float value) {
  int code = 0;
  for (int step = 1 << (bits - 1); step > 0; step /= 2) code += boundaries[code + step - 1] >= value ? 0 : step;
  return static_cast<uint8_t>(code);
}

template <class Type>
void encode_block(const KvCodec& codec, const typename Type::Word* vector, uint8_t* packed, uint16_t* scale) {
  alignas(64) float numbers[kKvLargestBlock];
  alignas(64) float terms[kKvLargestBlock];
  alignas(64) uint8_t codes[kKvLargestBlock];
  const int block = codec.block;
  for (int i = 0; i < block; ++i) {
    const float number = Type::widen(vector[i]);
    terms[i] = number * number;
    numbers[i] = number * codec.signs[i];
  }
  // Not being scaled, the transform makes the root mean square of a block's numbers the length that the block had.
  const float length = std::sqrt(tree_sum(terms, block));
  for (int i = 0; i < block; i += kLanes) store(numbers + i, inner_stages(load(numbers + i)));
  outer_stages(numbers, block);
  const float divisor = length < kKvTiny ? kKvTiny : length;
  for (int i = 0; i < block; ++i) numbers[i] /= divisor;
  for (int i = 0; i < block; ++i) codes[i] = code_of(codec.boundaries, codec.bits, numbers[i]);
  for (int i = 0; i < block; ++i) terms[i] = codec.levels[codes[i]] * codec.levels[codes[i]];
  const float squares = tree_sum(terms, block);
  float factor = length / std::sqrt(squares);
  if (codec.scale == TQ_KV_LEAST_SQUARES) {
    for (int i = 0; i < block; ++i) terms[i] = numbers[i] * codec.levels[codes[i]];
    factor = length / std::sqrt(static_cast<float>(block)) * tree_sum(terms, block) / squares;
  }
  *scale = float_to_half(factor);
  pack(codes, codec.bits, block, packed);
}

template <class Type>
void encode_vectors(const KvCodec& codec, const KvShape& shape, const KvEncode& job, int64_t first, int64_t last) {
  using Word = typename Type::Word;
  const int block_bytes = codec.block * codec.bits / 8;
  for (int64_t index = first; index < last; ++index) {
    const Word* vector = static_cast<const Word*>(job.vectors) + place_of(shape, shape.vectors, index);
    for (int64_t block = index * codec.blocks; block < (index + 1) * codec.blocks; ++block, vector += codec.block) {
      uint16_t scale;
      encode_block<Type>(codec, vector, job.codes + block * block_bytes, &scale);
      std::memcpy(job.scales + 2 * block, &scale, sizeof scale);
    }
  }
}

}  // namespace
}  // namespace tq
