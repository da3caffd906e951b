// Between memory and a batch: groups lie one after another in memory and side by side in a batch.
#pragma once

#include "floats.h"
#include "hadamard.h"

namespace tq {
namespace {

// Squares and quotients of weights at least this large keep clear of denormals.
constexpr float kSmallest = 0x1p-60f;

template <class V, int BITS, int G>
struct alignas(64) Words {
  static constexpr int kCount = BITS * G / 32;
  int32_t at[kCount][V::kLanes];
};

// Where each group of a batch starts in memory. Short groups at the end of a row, and groups past the end of the run,
// are copies with zeros after the data.
template <class V, int G>
struct Sources {
  const uint8_t* at[V::kLanes];
  alignas(64) uint8_t copies[V::kLanes][G * sizeof(float)];

  TQ_INLINE Sources(const Encode& job, int64_t first, int64_t last) {
    const int64_t size = size_of(job.dtype);
    for (int lane = 0; lane < V::kLanes; ++lane) {
      const int64_t group = first + lane;
      const int64_t row = group / job.groups, start = group % job.groups * G;
      const int64_t present = group >= last ? 0 : start + G <= job.columns ? G : job.columns - start;
      const uint8_t* from = job.weight + (row * job.columns + start) * size;
      at[lane] = present == G ? from : copies[lane];
      if (present == G) continue;
      std::memset(copies[lane], 0, sizeof copies[lane]);
      if (present > 0) std::memcpy(copies[lane], from, static_cast<size_t>(present * size));
    }
  }
};

// Fills the rows. Returns true where every weight is known to be zero or at least kSmallest in magnitude.
template <class V, int G>
bool read_rows(TqDtype dtype, const Sources<V, G>& sources, Rows<V, G>& rows) {
  const int64_t size = size_of(dtype);
  for (int lane = 0; lane < V::kLanes; ++lane) {
    for (int i = 0; i < G; ++i) rows.at[i][lane] = read_value(dtype, sources.at[lane] + i * size);
  }
  return false;
}

template <class V, int G>
void write_rows(const Decode& job, int64_t first, int64_t last, const Rows<V, G>& rows) {
  const int64_t size = size_of(job.dtype);
  for (int lane = 0; lane < V::kLanes && first + lane < last; ++lane) {
    const int64_t row = (first + lane) / job.groups, start = (first + lane) % job.groups * G;
    const int64_t present = start + G <= job.columns ? G : job.columns - start;
    uint8_t* to = job.weight + (row * job.columns + start) * size;
    for (int64_t i = 0; i < present; ++i) write_value(job.dtype, rows.at[i][lane], to + i * size);
  }
}

template <class V, int BITS, int G>
void write_words(const Words<V, BITS, G>& words, uint8_t* codes, int count) {
  for (int lane = 0; lane < count; ++lane) {
    for (int i = 0; i < words.kCount; ++i, codes += sizeof(int32_t)) {
      std::memcpy(codes, &words.at[i][lane], sizeof(int32_t));
    }
  }
}

template <class V, int BITS, int G>
void read_words(const uint8_t* codes, int count, Words<V, BITS, G>& words) {
  for (int lane = 0; lane < V::kLanes; ++lane) {
    for (int i = 0; i < words.kCount; ++i) {
      words.at[i][lane] = 0;
      if (lane >= count) continue;
      std::memcpy(&words.at[i][lane], codes + (lane * words.kCount + i) * sizeof(int32_t), sizeof(int32_t));
    }
  }
}

// Appends index k of position i (a constant from 0 to 31) to the little-endian bit stream of 32 indices.
template <class V, int BITS, int I>
TQ_INLINE void append(typename V::I (&word)[BITS], Index<I>, typename V::I k) {
  constexpr int kPlace = I * BITS / 32, kOffset = I * BITS % 32;
  if constexpr (kOffset == 0) {
    word[kPlace] = k;
  } else {
    word[kPlace] = V::either(word[kPlace], V::template left<kOffset>(k));
  }
  if constexpr (kOffset + BITS > 32) word[kPlace + 1] = V::template right<32 - kOffset>(k);
}

// Index i of the stream; bits above the index are left in.
template <class V, int BITS, int I>
TQ_INLINE typename V::I extract(const typename V::I (&word)[BITS], Index<I>) {
  constexpr int kPlace = I * BITS / 32, kOffset = I * BITS % 32;
  if constexpr (kOffset == 0) {
    return word[kPlace];
  } else {
    const typename V::I low = V::template right<kOffset>(word[kPlace]);
    if constexpr (kOffset + BITS <= 32) return low;
    else return V::either(low, V::template left<32 - kOffset>(word[kPlace + 1]));
  }
}

}  // namespace
}  // namespace tq
