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

// Where the groups of a batch lie in the matrix. A short group at the end of a row, and one past the end of the run,
// is worked on in a buffer of its own, with zeros after the data.
template <class V, int G>
struct Places {
  const uint8_t* at[V::kLanes];
  const uint8_t* inside[V::kLanes];
  int64_t bytes[V::kLanes];
  alignas(64) uint8_t buffers[V::kLanes][G * sizeof(float)];

  TQ_INLINE Places(const Shape& shape, const uint8_t* matrix, int64_t first, int64_t last) {
    int64_t row = first / shape.groups, start = first % shape.groups * G;
    for (int lane = 0; lane < V::kLanes; ++lane) {
      const int64_t left = first + lane < last ? shape.columns - start : 0;
      inside[lane] = matrix + (row * shape.columns + start) * shape.value_bytes;
      bytes[lane] = (left < G ? left : G) * shape.value_bytes;
      at[lane] = left < G ? buffers[lane] : inside[lane];
      start += G;
      if (start < shape.columns) continue;
      start = 0;
      ++row;
    }
  }

  TQ_INLINE void fill_buffers() {
    for (int lane = 0; lane < V::kLanes; ++lane) {
      if (at[lane] != buffers[lane]) continue;
      std::memset(buffers[lane], 0, sizeof buffers[lane]);
      if (bytes[lane]) std::memcpy(buffers[lane], inside[lane], static_cast<size_t>(bytes[lane]));
    }
  }

  TQ_INLINE uint8_t* target(int lane) { return const_cast<uint8_t*>(at[lane]); }

  TQ_INLINE void empty_buffers() {
    for (int lane = 0; lane < V::kLanes; ++lane) {
      if (at[lane] != buffers[lane] || bytes[lane] == 0) continue;
      std::memcpy(const_cast<uint8_t*>(inside[lane]), buffers[lane], static_cast<size_t>(bytes[lane]));
    }
  }
};

// Two 16-bit values in each lane, of rows i and i + 1, to floats.
template <class V, TqDtype D>
TQ_INLINE void widen(typename V::I pair, typename V::F (&value)[2]) {
  if constexpr (D == TQ_BF16) {
    value[0] = V::as_floats(V::template left<16>(pair));
    value[1] = V::as_floats(V::both(pair, V::all(static_cast<int32_t>(0xFFFF0000))));
  } else {
    value[0] = V::from_half(V::both(pair, V::all(0xFFFF)));
    value[1] = V::from_half(V::template right<16>(pair));
  }
}

// Fills the rows. Returns true where every weight is known to be zero or at least kSmallest in magnitude.
template <class V, int G, TqDtype D>
TQ_NOINLINE bool read_rows(const Places<V, G>& places, Rows<V, G>& rows) {
  constexpr int kWord = sizeof(int32_t), kValues = D == TQ_F32 ? 1 : 2;
  typename V::I least = V::all(-1);
  for (int word = 0; word < G / kValues; word += V::kLanes) {
    typename V::I block[V::kLanes];
    each<V::kLanes>([&](auto lane) TQ_LAMBDA { block[lane] = V::load_from(places.at[lane] + word * kWord); });
    V::transpose(block);
    each<V::kLanes>([&](auto i) TQ_LAMBDA {
      const int row = (word + i) * kValues;
      if constexpr (D == TQ_F32) {
        least = V::least_nonzero(least, block[i]);
        V::store(rows.at[row], V::as_floats(block[i]));
      } else {
        typename V::F value[2];
        widen<V, D>(block[i], value);
        if constexpr (D == TQ_BF16) least = V::least_nonzero_pair(least, block[i]);
        V::store(rows.at[row], value[0]);
        V::store(rows.at[row + 1], value[1]);
      }
    });
  }
  if constexpr (D == TQ_F32) return V::none_below(least, kSmallest);
  else if constexpr (D == TQ_BF16) return V::no_pair_below(least, kSmallest);
  else return true;
}

template <class V, int G, TqDtype D>
TQ_NOINLINE void write_rows(const Rows<V, G>& rows, Places<V, G>& places) {
  constexpr int kWord = sizeof(int32_t), kValues = D == TQ_F32 ? 1 : 2;
  for (int word = 0; word < G / kValues; word += V::kLanes) {
    typename V::I block[V::kLanes];
    each<V::kLanes>([&](auto i) TQ_LAMBDA {
      const int row = (word + i) * kValues;
      const typename V::F first = V::load(rows.at[row]);
      if constexpr (D == TQ_F32) {
        block[i] = V::as_integers(first);
      } else if constexpr (D == TQ_BF16) {
        block[i] = V::to_bfloats(first, V::load(rows.at[row + 1]));
      } else {
        block[i] = V::to_halves(first, V::load(rows.at[row + 1]));
      }
    });
    V::transpose(block);
    each<V::kLanes>([&](auto lane) TQ_LAMBDA { V::store_to(places.target(lane) + word * kWord, block[lane]); });
  }
}

template <class V, int BITS, int G>
TQ_INLINE void write_words(const Words<V, BITS, G>& words, uint8_t* codes, int count) {
  constexpr int kCount = Words<V, BITS, G>::kCount, kWord = sizeof(int32_t);
  for (int start = 0; start < kCount; start += V::kLanes) {
    const int width = kCount - start < V::kLanes ? kCount - start : V::kLanes;
    typename V::I block[V::kLanes];
    each<V::kLanes>([&](auto i) TQ_LAMBDA { block[i] = V::load(words.at[i < width ? start + i : start]); });
    V::transpose(block);
    each<V::kLanes>([&](auto lane) TQ_LAMBDA {
      if (lane < count) V::store_some(codes + (lane * kCount + start) * kWord, block[lane], width);
    });
  }
}

template <class V, int BITS, int G>
TQ_INLINE void read_words(const uint8_t* codes, int count, Words<V, BITS, G>& words) {
  constexpr int kCount = Words<V, BITS, G>::kCount, kWord = sizeof(int32_t);
  for (int start = 0; start < kCount; start += V::kLanes) {
    const int width = kCount - start < V::kLanes ? kCount - start : V::kLanes;
    typename V::I block[V::kLanes];
    each<V::kLanes>([&](auto lane) TQ_LAMBDA {
      const int from = lane < count ? lane : 0;
      block[lane] = V::load_some(codes + (from * kCount + start) * kWord, width);
    });
    V::transpose(block);
    each<V::kLanes>([&](auto i) TQ_LAMBDA {
      if (i < width) V::store(words.at[start + i], block[i]);
    });
  }
}

}  // namespace
}  // namespace tq
