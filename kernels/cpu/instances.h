// One instruction set's kernels for every width and group size: included once by each kernels_*.cpp.
#pragma once

#include "decode.h"
#include "search.h"

namespace tq {
namespace {

template <class V, int G>
TQ_INLINE bool read_batch(const Encode& job, int64_t first, int64_t last, Rows<V, G>& rows) {
  Places<V, G> places(job.shape, job.weight, first, last);
  places.fill_buffers();
  if (job.dtype == TQ_BF16) return read_rows<V, G, TQ_BF16>(places, rows);
  if (job.dtype == TQ_F16) return read_rows<V, G, TQ_F16>(places, rows);
  return read_rows<V, G, TQ_F32>(places, rows);
}

// One finite batch: rows become scratch, words and stored norms are the result.
template <class V, int BITS, int G>
TQ_INLINE void encode_batch(const Encode& job, typename V::F length, bool faint, Rows<V, G>& rows,
                            Words<V, BITS, G>& words, float (&norm)[V::kLanes]) {
  alignas(64) float lane[V::kLanes], searched[V::kLanes];
  Words<V, BITS, G> found;
  V::store(lane, length);
  if (job.scale == TQ_SCALE_SEARCH) {
    search_batch<V, BITS, G>(*job.constants, rows, lane, found, searched);
    if (!faint) {
      words = found;
      std::memcpy(norm, searched, sizeof norm);
      return;
    }
  }
  V::store(norm, V::div(length, quantise<V, BITS, G>(*job.constants, rows, words)));
  if (job.scale == TQ_SCALE_NORM) return;
  for (int i = 0; i < V::kLanes; ++i) {
    if (lane[i] > 0.0f && lane[i] < kSmallest) continue;
    norm[i] = searched[i];
    for (int w = 0; w < found.kCount; ++w) words.at[w][i] = found.at[w][i];
  }
}

template <class V, int BITS, int G>
int64_t encode_groups(const Encode& job, int64_t first, int64_t last) {
  Words<V, BITS, G> words;
  Rows<V, G> rows;
  alignas(64) float norm[V::kLanes];
  for (int64_t group = first; group < last; group += V::kLanes) {
    const int count = last - group < V::kLanes ? static_cast<int>(last - group) : V::kLanes;
    const bool clear = read_batch<V, G>(job, group, last, rows);
    const typename V::F length = clear && job.dtype != TQ_F32 ? lengths<V, G, true>(rows) : lengths<V, G>(rows);
    const Lengths seen = inspect<V>(length);
    if (seen.first_broken < V::kLanes) return group + seen.first_broken;
    rotate_batch<V, G>(job, clear && seen.ordinary, length, rows);
    encode_batch<V, BITS, G>(job, length, seen.faint, rows, words, norm);
    write_words(words, job.codes + group * words.kCount * 4, count);
    std::memcpy(job.norms + group, norm, static_cast<size_t>(count) * sizeof(float));
  }
  return -1;
}

template <class V, int BITS>
int64_t encode_bits(const Encode& job, int64_t first, int64_t last) {
  switch (job.constants->tables.group_size) {
    case 32: return encode_groups<V, BITS, 32>(job, first, last);
    case 64: return encode_groups<V, BITS, 64>(job, first, last);
    case 128: return encode_groups<V, BITS, 128>(job, first, last);
    default: return encode_groups<V, BITS, 256>(job, first, last);
  }
}

template <class V>
int64_t encode_any(const Encode& job, int64_t first, int64_t last) {
  switch (job.constants->tables.bits) {
    case 2: return encode_bits<V, 2>(job, first, last);
    case 3: return encode_bits<V, 3>(job, first, last);
    default: return encode_bits<V, 4>(job, first, last);
  }
}

template <class V, int BITS>
void decode_bits(const Decode& job, int64_t first, int64_t last) {
  switch (job.constants->tables.group_size) {
    case 32: return decode_groups<V, BITS, 32>(job, first, last);
    case 64: return decode_groups<V, BITS, 64>(job, first, last);
    case 128: return decode_groups<V, BITS, 128>(job, first, last);
    default: return decode_groups<V, BITS, 256>(job, first, last);
  }
}

template <class V>
void decode_any(const Decode& job, int64_t first, int64_t last) {
  switch (job.constants->tables.bits) {
    case 2: return decode_bits<V, 2>(job, first, last);
    case 3: return decode_bits<V, 3>(job, first, last);
    default: return decode_bits<V, 4>(job, first, last);
  }
}

}  // namespace
}  // namespace tq
