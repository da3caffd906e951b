// Rows of a packed matrix times a few tokens, by lanes. A group is decoded once for all tokens; its products are summed as whole
// numbers in 16 lanes, column c of it in lane c % 64 / 4, and each lane is multiplied with the scales of weight and
// activations and added to the row's lane, group after group. At last lanes are added: l and l + 8, then 4, 2, 1.
#pragma once

#include "product_piece.h"
#include "unroll.h"

namespace tq {
namespace {

// Rows and tokens of an innermost loop. scales: of each row's groups.
template <int Rows, int Tokens>
struct Tile {
  const uint8_t* codes[Rows];
  const uint8_t* stored_scales[Rows];
  const float* scales[Rows];
  const int8_t* values[Tokens];
  const int32_t* corrections[Tokens];
  const float* token_scales[Tokens];
  int64_t lower;  // bytes from upper to lower bytes of activations, where there are any
  int64_t ahead;  // bytes from these rows' codes to those of the next
};

template <class Set, class Reader, int Planes, int Halves, int Rows, int Tokens>
TQ_NOINLINE void add_run(const Reader& reader, const ProductRun& run, const Tile<Rows, Tokens>& tile,
                         typename Set::Sums (&sums)[Rows][Tokens]) {
  typename Set::Sums sum[Rows][Tokens];
  each<Rows>([&](auto r) TQ_LAMBDA { each<Tokens>([&](auto t) TQ_LAMBDA { sum[r][t] = sums[r][t]; }); });
  const typename Reader::Part part = Reader::part(run.size);
  const int64_t group_bytes = Reader::kBits * run.size / 8;
  for (int64_t i = 0; i < run.groups; ++i) {
    const int64_t group = run.group + i, code = run.code + i * group_bytes, slot = run.slot + i * 64 * Halves;
    each<Rows>([&](auto r) TQ_LAMBDA {
      const uint8_t* const codes = tile.codes[r] + code;
      __builtin_prefetch(codes + tile.ahead);
      if constexpr (Reader::kBits * Halves > 8) __builtin_prefetch(codes + tile.ahead + 64);
      typename Set::Bytes bytes[Halves];
      reader.template read<Halves>(codes, tile.stored_scales[r] + 2 * group, part, bytes);
      each<Tokens>([&](auto t) TQ_LAMBDA {
        const int32_t* const corrections = tile.corrections[t] + group * kProductLanes;
        typename Set::Integers dot = Planes == 1 ? Set::start(corrections) : Set::none();
        each<Halves>([&](auto h) TQ_LAMBDA { dot = Set::dot(dot, bytes[h], tile.values[t] + slot + 64 * h); });
        if constexpr (Planes == 2) {
          const int8_t* const lower = tile.values[t] + tile.lower + slot;
          dot = Set::upper(dot, Set::start(corrections));
          each<Halves>([&](auto h) TQ_LAMBDA { dot = Set::dot(dot, bytes[h], lower + 64 * h); });
        }
        sum[r][t] = Set::add(sum[r][t], dot, tile.scales[r][group] * tile.token_scales[t][group]);
      });
    });
  }
  each<Rows>([&](auto r) TQ_LAMBDA { each<Tokens>([&](auto t) TQ_LAMBDA { sums[r][t] = sum[r][t]; }); });
}

// Tokens beyond the batch's are its last one again, and rows beyond the last are the last: their sums are dropped.
template <class Set, class Reader, int Planes, int Tokens>
void multiply_rows(const ProductJob& job, const ProductBatch& batch, const ProductPiece& piece) {
  constexpr int kRows = Set::template rows<Tokens>();
  const Reader reader(*job.format);
  Tile<kRows, Tokens> tile;
  tile.lower = job.rows.slots;
  tile.ahead = kRows * job.rows.code_bytes;
  for (int t = 0; t < Tokens; ++t) {
    const int64_t token = batch.token[t < batch.tokens ? t : batch.tokens - 1];
    tile.values[t] = job.prepared.values + token * Planes * job.rows.slots;
    tile.corrections[t] = job.prepared.corrections + token * job.rows.groups * kProductLanes;
    tile.token_scales[t] = job.prepared.scales + token * job.rows.groups;
  }
  for (int64_t start = 0; start < piece.rows; start += kRows) {
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = start + r < piece.rows ? start + r : piece.rows - 1;
      tile.codes[r] = piece.codes + row * job.rows.code_bytes;
      tile.stored_scales[r] = piece.stored_scales + row * job.rows.scale_bytes;
      tile.scales[r] = piece.scales + row * job.rows.groups;
    }
    typename Set::Sums sums[kRows][Tokens];
    for (auto& row : sums) for (auto& sum : row) sum = Set::zero();
    for (int i = 0; i < job.rows.runs; ++i) {
      const ProductRun& run = job.rows.run[i];
      if (run.is_wide()) add_run<Set, Reader, Planes, 2>(reader, run, tile, sums);
      else add_run<Set, Reader, Planes, 1>(reader, run, tile, sums);
    }
    for (int r = 0; r < kRows && start + r < piece.rows; ++r) {
      for (int t = 0; t < batch.tokens; ++t) {
        uint8_t* const result = batch.results + t * job.result_bytes();
        store_result(job.dtype, Set::total(sums[r][t]), result, piece.first + start + r);
      }
    }
  }
}

template <class Set, class Reader, int Planes>
void multiply_planes(const ProductJob& job, const ProductBatch& batch, const ProductPiece& piece) {
  if (batch.tokens == 1) return multiply_rows<Set, Reader, Planes, 1>(job, batch, piece);
  if (batch.tokens == 2) return multiply_rows<Set, Reader, Planes, 2>(job, batch, piece);
  if (batch.tokens <= 4) return multiply_rows<Set, Reader, Planes, 4>(job, batch, piece);
  return multiply_rows<Set, Reader, Planes, 8>(job, batch, piece);
}

// What multiply_packed calls for the format's reader.
struct ByLanes {
  template <class Set, class Reader>
  static void multiply(const ProductJob& job, const ProductBatch& batch, const ProductPiece& piece, uint8_t*) {
    if (job.planes == 1) return multiply_planes<Set, Reader, 1>(job, batch, piece);
    return multiply_planes<Set, Reader, 2>(job, batch, piece);
  }
};

}  // namespace
}  // namespace tq
