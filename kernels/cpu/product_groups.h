// Rows of a packed matrix times tokens, by groups: the products of a whole group are summed as whole numbers, multiplied
// with the scales of weight and activations, and added to the row's only sum, group after group. On every instruction
// set, and slow: each token decodes the row again. `product_turned.h` does the same fast.
#pragma once

#include "product_piece.h"
#include "unroll.h"

namespace tq {
namespace {

template <class Set, class Reader, int Planes, int Halves>
float add_groups(const Reader& reader, const ProductJob& job, const ProductRun& run, const ProductPiece& piece,
                 int64_t row, int64_t token, float sum) {
  const typename Reader::Part part = Reader::part(run.size);
  const uint8_t* const codes = piece.codes + row * job.rows.code_bytes + run.code;
  const int8_t* const values = job.prepared.values + token * Planes * job.rows.slots + run.slot;
  for (int64_t i = 0; i < run.groups; ++i) {
    const int64_t group = run.group + i, number = token * job.rows.groups + group;
    const int32_t* const corrections = job.prepared.corrections + number * kProductLanes;
    typename Set::Bytes bytes[Halves];
    reader.template read<Halves>(codes + i * Reader::kBits * run.size / 8,
                                 piece.stored_scales + row * job.rows.scale_bytes + 2 * group, part, bytes);
    typename Set::Integers dot = Planes == 1 ? Set::start(corrections) : Set::none();
    each<Halves>([&](auto h) TQ_LAMBDA { dot = Set::dot(dot, bytes[h], values + 64 * (i * Halves + h)); });
    if constexpr (Planes == 2) {
      const int8_t* const lower = values + job.rows.slots;
      dot = Set::upper(dot, Set::start(corrections));
      each<Halves>([&](auto h) TQ_LAMBDA { dot = Set::dot(dot, bytes[h], lower + 64 * (i * Halves + h)); });
    }
    int32_t lanes[kProductLanes], whole = 0;
    static_assert(sizeof lanes == sizeof dot);
    std::memcpy(lanes, &dot, sizeof lanes);
    for (int32_t lane : lanes) whole += lane;
    sum += static_cast<float>(whole) * (piece.scales[row * job.rows.groups + group] * job.prepared.scales[number]);
  }
  return sum;
}

template <class Set, class Reader, int Planes>
void multiply_each(const ProductJob& job, const ProductBatch& batch, const ProductPiece& piece) {
  const Reader reader(*job.format);
  for (int64_t row = 0; row < piece.rows; ++row) {
    for (int64_t t = 0; t < batch.tokens; ++t) {
      float sum = 0.0f;
      for (int i = 0; i < job.rows.runs; ++i) {
        const ProductRun& run = job.rows.run[i];
        const auto add = run.is_wide() ? add_groups<Set, Reader, Planes, 2> : add_groups<Set, Reader, Planes, 1>;
        sum = add(reader, job, run, piece, row, batch.token[t], sum);
      }
      store_result(job.dtype, sum, batch.results + t * job.result_bytes(), piece.first + row);
    }
  }
}

// What multiply_packed calls for the format's reader.
struct ByGroups {
  template <class Set, class Reader>
  static void multiply(const ProductJob& job, const ProductBatch& batch, const ProductPiece& piece, uint8_t*) {
    if (job.planes == 1) return multiply_each<Set, Reader, 1>(job, batch, piece);
    return multiply_each<Set, Reader, 2>(job, batch, piece);
  }
};

}  // namespace
}  // namespace tq
