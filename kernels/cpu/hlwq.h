// HLWQ: blocks of 128 weights, rotated by the plain Walsh-Hadamard transform, indices of 2 to 8 bits, a half-precision
// norm a block. Blocks lie side by side in the lanes of a vector, as in the native format. Left out: which table of
// levels a file means; midpoints and levels come from the caller.
#pragma once

#include "batch.h"
#include "dispatch.h"
#include "hlwq_search.h"
#include "hlwq_stream.h"

namespace tq {

struct HlwqEncode {
  TqDtype dtype;
  Shape shape;
  const float* midpoints;  // 2^bits - 1
  const uint8_t* weight;
  uint8_t* packed;
  uint8_t* norms;
};

struct HlwqDecode {
  Shape shape;
  const float* levels;  // 2^bits
  const uint8_t* packed;
  const uint8_t* norms;
  uint8_t* weight;
};

// From block `first` to before block `last`; encode returns the first block whose norm fits no half, or -1.
struct HlwqKernels {
  int64_t (*encode)(int32_t bits, const HlwqEncode& job, int64_t first, int64_t last);
  void (*decode)(int32_t bits, const HlwqDecode& job, int64_t first, int64_t last);
};

TQ_DECLARE_SETS(HlwqKernels, kHlwq);

namespace {

constexpr int kHlwqBlock = 128;
constexpr float kLeastNorm = 1e-10f;
constexpr float kHalfOverflow = 65520.0f;  // this and more rounds to infinity

template <class V>
TQ_INLINE void read_block_rows(const HlwqEncode& job, int64_t first, int64_t last, Rows<V, kHlwqBlock>& rows) {
  Places<V, kHlwqBlock> places(job.shape, job.weight, first, last);
  places.fill_buffers();
  if (job.dtype == TQ_BF16) read_rows<V, kHlwqBlock, TQ_BF16>(places, rows);
  else if (job.dtype == TQ_F16) read_rows<V, kHlwqBlock, TQ_F16>(places, rows);
  else read_rows<V, kHlwqBlock, TQ_F32>(places, rows);
}

// Stores the norms of the first `count` lanes as halves; returns the first lane whose norm fits none, or `count`.
template <class V>
TQ_INLINE int write_norms(typename V::F length, int count, uint8_t* norms) {
  alignas(64) float lane[V::kLanes];
  V::store(lane, length);
  for (int i = 0; i < count; ++i) {
    if (!(lane[i] < kHalfOverflow)) return i;
    const uint16_t half = float_to_half(lane[i]);
    std::memcpy(norms + 2 * i, &half, sizeof half);
  }
  return count;
}

// The transform is left unscaled: its root cancels against the one that makes the coordinates of unit variance.
template <class V>
TQ_NOINLINE void transform(Rows<V, kHlwqBlock>& rows) {
  inner_stages<V, kHlwqBlock>(rows, [&](int start, auto i) TQ_LAMBDA { return V::load(rows.at[start + i]); });
  outer_stages<V, kHlwqBlock>(rows, [](int, typename V::F value) TQ_LAMBDA { return value; });
}

template <class V, int BITS>
TQ_NOINLINE void quantise_rows(const Rows<V, kHlwqBlock>& rows, typename V::F norm, const Halving<BITS>& halving,
                               Words<V, BITS, kHlwqBlock>& words) {
  for (int start = 0; start < kHlwqBlock; start += kStream) {
    typename V::I word[BITS];
    each<kStream>([&](auto i) TQ_LAMBDA {
      const typename V::F value = V::div(V::load(rows.at[start + i]), norm);
      append_high<V, BITS>(word, i, below<V, BITS>(halving, value));
    });
    each<BITS>([&](auto w) TQ_LAMBDA { V::store(words.at[start / kStream * BITS + w], swapped<V>(word[w])); });
  }
}

template <class V, int BITS>
int64_t encode_blocks(const HlwqEncode& job, int64_t first, int64_t last) {
  const Halving<BITS> halving(job.midpoints);
  const typename V::F least = V::all(kLeastNorm);
  Words<V, BITS, kHlwqBlock> words;
  Rows<V, kHlwqBlock> rows;
  for (int64_t block = first; block < last; block += V::kLanes) {
    const int count = last - block < V::kLanes ? static_cast<int>(last - block) : V::kLanes;
    read_block_rows<V>(job, block, last, rows);
    const typename V::F length = lengths<V, kHlwqBlock>(rows);
    const typename V::F norm = V::select(V::greater(least, length), least, length);
    const int kept = write_norms<V>(norm, count, job.norms + 2 * block);
    if (kept < count) return block + kept;
    transform<V>(rows);
    quantise_rows<V, BITS>(rows, norm, halving, words);
    write_words(words, job.packed + block * words.kCount * 4, count);
  }
  return -1;
}

// Half of the scale of each transform, 1 / sqrt(128), is in the levels, half in the transform: together 1 / 128, exact.
template <class V>
TQ_INLINE typename V::F read_norms(const uint8_t* norms, int count) {
  alignas(64) float lane[V::kLanes] = {};
  for (int i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, norms + 2 * i, sizeof half);
    lane[i] = half_to_float(half) * 0x1p-7f;
  }
  return V::load(lane);
}

template <class V, int BITS>
TQ_NOINLINE void reconstruct_rows(const Words<V, BITS, kHlwqBlock>& words, const Levels<BITS>& levels,
                                  typename V::F norm, Rows<V, kHlwqBlock>& rows) {
  typename V::I word[BITS];
  inner_stages<V, kHlwqBlock>(rows, [&](int start, auto i) TQ_LAMBDA {
    if constexpr (i == 0) {
      each<BITS>([&](auto w) TQ_LAMBDA { word[w] = swapped<V>(V::load(words.at[start / kStream * BITS + w])); });
    }
    return level_of<V, BITS>(levels, extract_high<V, BITS>(word, i));
  });
  outer_stages<V, kHlwqBlock>(rows, [&](int, typename V::F value) TQ_LAMBDA { return V::mul(value, norm); });
}

template <class V, int BITS>
void decode_blocks(const HlwqDecode& job, int64_t first, int64_t last) {
  const Levels<BITS> levels(job.levels);
  Words<V, BITS, kHlwqBlock> words;
  Rows<V, kHlwqBlock> rows;
  for (int64_t block = first; block < last; block += V::kLanes) {
    const int count = last - block < V::kLanes ? static_cast<int>(last - block) : V::kLanes;
    const typename V::F norm = read_norms<V>(job.norms + 2 * block, count);
    read_words(job.packed + block * words.kCount * 4, count, words);
    reconstruct_rows<V, BITS>(words, levels, norm, rows);
    Places<V, kHlwqBlock> places(job.shape, job.weight, block, last);
    write_rows<V, kHlwqBlock, TQ_F32>(rows, places);
    places.empty_buffers();
  }
}

template <class V>
int64_t encode_hlwq(int32_t bits, const HlwqEncode& job, int64_t first, int64_t last) {
  switch (bits) {
    case 2: return encode_blocks<V, 2>(job, first, last);
    case 3: return encode_blocks<V, 3>(job, first, last);
    case 4: return encode_blocks<V, 4>(job, first, last);
    case 5: return encode_blocks<V, 5>(job, first, last);
    case 6: return encode_blocks<V, 6>(job, first, last);
    default: return encode_blocks<V, 8>(job, first, last);
  }
}

template <class V>
void decode_hlwq(int32_t bits, const HlwqDecode& job, int64_t first, int64_t last) {
  switch (bits) {
    case 2: return decode_blocks<V, 2>(job, first, last);
    case 3: return decode_blocks<V, 3>(job, first, last);
    case 4: return decode_blocks<V, 4>(job, first, last);
    case 5: return decode_blocks<V, 5>(job, first, last);
    case 6: return decode_blocks<V, 6>(job, first, last);
    default: return decode_blocks<V, 8>(job, first, last);
  }
}

}  // namespace
}  // namespace tq
