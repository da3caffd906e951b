// Encoding with a search for the scale of the grid. Everything that decides is an integer: exact, in any order.
#pragma once

#include "encode.h"

namespace tq {
namespace {

constexpr float kSearchUnits = 1024.0f;  // of a standard deviation, as in tq_kernels/types.py

// Two rows in each lane: the even row in the low 16 bits, the odd one in the high 16 bits.
template <class V, int G>
struct alignas(64) Pairs {
  int32_t at[G / 2][V::kLanes];
};

// The best grid so far of each group of a batch.
template <class V, int BITS>
struct alignas(64) Best {
  static constexpr int kBoundaries = (1 << (BITS - 1)) - 1;
  double quality[V::kLanes];
  double factor[V::kLanes] = {};
  int32_t boundaries[kBoundaries][V::kLanes] = {};
};

inline int32_t twice(int16_t value) { return static_cast<int32_t>(value) * 0x10001; }

// Rotated rows to magnitudes, and to the bit stream of their signs (1 for above zero).
template <class V, int G>
TQ_NOINLINE void magnitudes(const Constants& constants, const Rows<V, G>& rows, Pairs<V, G>& pairs,
                          int32_t (&above)[G / 32][V::kLanes]) {
  for (int start = 0; start < G; start += 32) {
    typename V::I bits = V::all(0);
    each<16>([&](auto i) TQ_LAMBDA {
      const int at = start + 2 * i;
      const auto units = [&](int row) TQ_LAMBDA {
        const typename V::F sign = V::all(kSearchUnits * constants.tables.signs_out[row]);
        return V::round(V::mul(V::load(rows.at[row]), sign));
      };
      const typename V::I even = units(at), odd = units(at + 1);
      bits = V::either(bits, V::template left<2 * i>(V::positive(even)));
      bits = V::either(bits, V::template left<2 * i + 1>(V::positive(odd)));
      const typename V::I high = V::template left<16>(V::absolute(odd));
      V::store(pairs.at[at / 2], V::either(V::absolute(even), high));
    });
    V::store(above[start / 32], bits);
  }
}

template <class V, int BITS, int G>
TQ_INLINE void try_candidate(const TqTables& tables, int candidate, const Pairs<V, G>& pairs, Best<V, BITS>& best) {
  constexpr int kBoundaries = Best<V, BITS>::kBoundaries;
  const int16_t* boundaries = tables.search_boundaries + candidate * kBoundaries;
  typename V::I boundary[kBoundaries], level[kBoundaries + 1];
  each<kBoundaries>([&](auto i) TQ_LAMBDA { boundary[i] = V::all(twice(boundaries[i])); });
  each<kBoundaries + 1>([&](auto i) TQ_LAMBDA { level[i] = V::all(twice(tables.search_centroids[i])); });
  typename V::I projection = V::all(0), energy = V::all(0);
  for (int i = 0; i < G / 2; ++i) {
    const typename V::I magnitude = V::load(pairs.at[i]);
    typename V::I chosen = level[0];
    each<kBoundaries>([&](auto b) TQ_LAMBDA {
      chosen = V::pairs_select(V::pairs_greater(magnitude, boundary[b]), level[b + 1], chosen);
    });
    projection = V::sum(projection, V::pairs_dot(magnitude, chosen));
    energy = V::sum(energy, V::pairs_dot(chosen, chosen));
  }
  alignas(64) int32_t dot[V::kLanes], square[V::kLanes];
  V::store(dot, projection);
  V::store(square, energy);
  for (int lane = 0; lane < V::kLanes; ++lane) {
    const double along = dot[lane], own = square[lane];
    const double quality = along * along / own;
    if (!(quality > best.quality[lane])) continue;
    best.quality[lane] = quality;
    best.factor[lane] = along / own;
    for (int b = 0; b < kBoundaries; ++b) best.boundaries[b][lane] = twice(boundaries[b]);
  }
}

// Indices by the best boundaries of each group, mirrored below zero.
template <class V, int BITS, int G>
TQ_INLINE void assign(const Pairs<V, G>& pairs, const int32_t (&above)[G / 32][V::kLanes],
                      const Best<V, BITS>& best, Words<V, BITS, G>& words) {
  constexpr int kBoundaries = Best<V, BITS>::kBoundaries, kHalf = 1 << (BITS - 1);
  const typename V::I one = V::all(0x10001), low = V::all(0xFFFF);
  for (int start = 0; start < G; start += kStream) {
    typename V::I word[BITS], bits = V::load(above[start / 32]);
    const auto place = [&](auto i, typename V::I index) TQ_LAMBDA {
      // Above zero half + index, else half - 1 - index: the index with half or half - 1 added bit by bit.
      const typename V::I sign = V::both(V::template right<i>(bits), V::all(1));
      append<V, BITS>(word, i, V::differ(index, V::sum(V::all(kHalf - 1), sign)));
    };
    each<kStream / 2>([&](auto i) TQ_LAMBDA {
      const typename V::I magnitude = V::load(pairs.at[start / 2 + i]);
      typename V::I index = V::all(0);
      each<kBoundaries>([&](auto b) TQ_LAMBDA {
        const typename V::I boundary = V::load(best.boundaries[b]);
        index = V::sum(index, V::pairs_select(V::pairs_greater(magnitude, boundary), one, V::all(0)));
      });
      place(Index<2 * i>{}, V::both(index, low));
      place(Index<2 * i + 1>{}, V::template right<16>(index));
    });
    each<BITS>([&](auto w) TQ_LAMBDA { V::store(words.at[start / kStream * BITS + w], word[w]); });
  }
}

template <class V, int BITS, int G>
TQ_INLINE void search(const TqTables& tables, const Pairs<V, G>& pairs, Best<V, BITS>& best) {
  for (int lane = 0; lane < V::kLanes; ++lane) best.quality[lane] = -1.0;
  for (int candidate = 0; candidate < tables.candidates; ++candidate) {
    try_candidate<V, BITS, G>(tables, candidate, pairs, best);
  }
}

// As quantise(), with the scale searched; `norm` is what is stored.
template <class V, int BITS, int G>
TQ_INLINE void search_batch(const Constants& constants, const Rows<V, G>& rows, const float (&length)[V::kLanes],
                            Words<V, BITS, G>& words, float (&norm)[V::kLanes]) {
  Pairs<V, G> pairs;
  Best<V, BITS> best;
  alignas(64) int32_t above[G / 32][V::kLanes];
  magnitudes<V, G>(constants, rows, pairs, above);
  search<V, BITS, G>(constants.tables, pairs, best);
  assign<V, BITS, G>(pairs, above, best, words);
  for (int lane = 0; lane < V::kLanes; ++lane) {
    norm[lane] = static_cast<float>(static_cast<double>(length[lane]) * best.factor[lane]);
  }
}

}  // namespace
}  // namespace tq
