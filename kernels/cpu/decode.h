// Decoding a batch of groups: levels, inverse rotation, norm.
#pragma once

#include "batch.h"
#include "bitstream.h"

namespace tq {
namespace {

// Both signs of a number of each group: multiplying by a sign first or choosing the signed factor gives the same bits.
template <class V>
struct alignas(64) Signed {
  float at[2][V::kLanes] = {};

  // A NaN becomes the plain quiet one, which every rounding keeps.
  TQ_INLINE Signed(const float* values, int count) {
    std::memcpy(at[0], values, static_cast<size_t>(count) * sizeof(float));
    for (int lane = 0; lane < count; ++lane) {
      at[0][lane] = at[0][lane] == at[0][lane] ? at[0][lane] : __builtin_nanf("");
      at[1][lane] = -at[0][lane];
    }
  }
};

template <class V, int BITS, int G>
TQ_INLINE void reconstruct(const Constants& constants, const Words<V, BITS, G>& words, const Signed<V>& norms,
                           Rows<V, G>& rows) {
  typename V::I word[BITS];
  inner_stages<V, G>(rows, [&](int start, auto i) TQ_LAMBDA {
    if constexpr (i == 0) {
      each<BITS>([&](auto w) TQ_LAMBDA { word[w] = V::load(words.at[start / kStream * BITS + w]); });
    }
    const float* levels = constants.levels[constants.negative_out[start + i]];
    return V::look_up(V::table(levels), extract<V, BITS>(word, i));
  });
  outer_stages<V, G>(rows, [&](int at, typename V::F value) TQ_LAMBDA {
    return V::mul(divide_by_root<V>(value, constants), V::load(norms.at[constants.negative_in[at]]));
  });
}

template <class V, int BITS, int G>
void decode_groups(const Decode& job, int64_t first, int64_t last) {
  using Stream = Words<V, BITS, G>;
  Stream words;
  Rows<V, G> rows;
  for (int64_t group = first; group < last; group += V::kLanes) {
    const int count = last - group < V::kLanes ? static_cast<int>(last - group) : V::kLanes;
    const Signed<V> norms(job.norms + group, count);
    read_words(job.codes + group * Stream::kCount * 4, count, words);
    reconstruct<V, BITS, G>(*job.constants, words, norms, rows);
    Places<V, G> places(job.shape, job.weight, group, last);
    if (job.dtype == TQ_BF16) write_rows<V, G, TQ_BF16>(rows, places);
    else if (job.dtype == TQ_F16) write_rows<V, G, TQ_F16>(rows, places);
    else write_rows<V, G, TQ_F32>(rows, places);
    places.empty_buffers();
  }
}

}  // namespace
}  // namespace tq
