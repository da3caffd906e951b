// Decoding a batch of groups: levels, inverse rotation, norm.
#pragma once

#include "batch.h"
#include "bitstream.h"

namespace tq {
namespace {

template <class V, int BITS, int G>
TQ_INLINE void reconstruct(const Constants& constants, const Words<V, BITS, G>& words, typename V::F norm,
                           Rows<V, G>& rows) {
  const typename V::Table levels[2] = {V::table(constants.levels[0]), V::table(constants.levels[1])};
  typename V::I word[BITS];
  inner_stages<V, G>(rows, [&](int start, auto i) TQ_LAMBDA {
    if constexpr (i == 0) {
      each<BITS>([&](auto w) TQ_LAMBDA { word[w] = V::load(words.at[start / kStream * BITS + w]); });
    }
    const typename V::F level = V::look_up(levels[0], extract<V, BITS>(word, i));
    return V::mul(level, V::all(constants.tables.signs_out[start + i]));
  });
  outer_stages<V, G>(rows, [&](int at, typename V::F value) TQ_LAMBDA {
    const typename V::F unit = divide_by_root<V>(value, constants);
    return V::mul(V::mul(unit, V::all(constants.tables.signs_in[at])), norm);
  });
}

template <class V, int BITS, int G>
void decode_groups(const Decode& job, int64_t first, int64_t last) {
  using Stream = Words<V, BITS, G>;
  Stream words;
  Rows<V, G> rows;
  for (int64_t group = first; group < last; group += V::kLanes) {
    const int count = last - group < V::kLanes ? static_cast<int>(last - group) : V::kLanes;
    alignas(64) float norm[V::kLanes] = {};
    std::memcpy(norm, job.norms + group, static_cast<size_t>(count) * sizeof(float));
    read_words(job.codes + group * Stream::kCount * 4, count, words);
    reconstruct<V, BITS, G>(*job.constants, words, V::load(norm), rows);
    Places<V, G> places(job.shape, job.weight, group, last);
    if (job.dtype == TQ_BF16) write_rows<V, G, TQ_BF16>(rows, places);
    else if (job.dtype == TQ_F16) write_rows<V, G, TQ_F16>(rows, places);
    else write_rows<V, G, TQ_F32>(rows, places);
    places.empty_buffers();
  }
}

}  // namespace
}  // namespace tq
