// Products by groups with byte permutations and dot products (VBMI, VNNI): blocks of sixteen rows are decoded once,
// turned so that each has a lane of its own, and multiplied with all tokens while they are in the cache.
#pragma once

#include "product_piece.h"
#include "product_vbmi.h"

namespace tq {
namespace {

constexpr int kTokensTogether = 4;

// Sixteen decoded rows. bytes: of each four columns, those of the sixteen rows; scales: of each group, likewise.
struct Turned {
  uint8_t* bytes;
  float* scales;
};

// Lane l of vector v and lane v of vector l change places.
TQ_INLINE void turn(__m512i (&rows)[16]) {
  __m512i pairs[16], fours[16];
  each<8>([&](auto i) TQ_LAMBDA {
    pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
  });
  each<4>([&](auto i) TQ_LAMBDA {
    each<2>([&](auto j) TQ_LAMBDA {
      fours[4 * i + 2 * j] = _mm512_unpacklo_epi64(pairs[4 * i + j], pairs[4 * i + j + 2]);
      fours[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[4 * i + j], pairs[4 * i + j + 2]);
    });
  });
  // Now 128-bit parts: part p of fours[4 * i + j] belongs in part i of rows[4 * p + j].
  each<4>([&](auto j) TQ_LAMBDA {
    const __m512i low = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x44);
    const __m512i high = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xEE);
    const __m512i other_low = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x44);
    const __m512i other_high = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xEE);
    rows[j] = _mm512_shuffle_i32x4(low, other_low, 0x88);
    rows[4 + j] = _mm512_shuffle_i32x4(low, other_low, 0xDD);
    rows[8 + j] = _mm512_shuffle_i32x4(high, other_high, 0x88);
    rows[12 + j] = _mm512_shuffle_i32x4(high, other_high, 0xDD);
  });
}

template <class Reader, int Halves>
TQ_NOINLINE void turn_run(const Reader& reader, const ProductJob& job, const ProductRun& run, const ProductPiece& piece,
                          int64_t start, const Turned& turned) {
  const typename Reader::Part part = Reader::part(run.size);
  for (int64_t i = 0; i < run.groups; ++i) {
    const int64_t group = run.group + i;
    __m512i rows[Halves][kTurnedRows];
    each<kTurnedRows>([&](auto r) TQ_LAMBDA {
      // Rows beyond the last are the last: what they give is dropped.
      const int64_t row = start + r < piece.rows ? start + r : piece.rows - 1;
      __m512i bytes[Halves];
      reader.template read<Halves>(piece.codes + row * job.rows.code_bytes + run.code + i * Reader::kBits * run.size / 8,
                                   piece.stored_scales + row * job.rows.scale_bytes + 2 * group, part, bytes);
      each<Halves>([&](auto h) TQ_LAMBDA { rows[h][r] = bytes[h]; });
      turned.scales[group * kTurnedRows + r] = piece.scales[row * job.rows.groups + group];
    });
    uint8_t* const target = turned.bytes + kTurnedRows * (run.slot + i * 64 * Halves);
    each<Halves>([&](auto h) TQ_LAMBDA {
      turn(rows[h]);
      each<16>([&](auto v) TQ_LAMBDA { _mm512_store_si512(target + 1024 * h + 64 * v, rows[h][v]); });
    });
  }
}

template <class Reader>
void turn_rows(const ProductJob& job, const ProductPiece& piece, int64_t start, const Turned& turned) {
  const Reader reader(*job.format);
  for (int i = 0; i < job.rows.runs; ++i) {
    const ProductRun& run = job.rows.run[i];
    if (run.is_wide()) turn_run<Reader, 2>(reader, job, run, piece, start, turned);
    else turn_run<Reader, 1>(reader, job, run, piece, start, turned);
  }
}

TQ_INLINE __m512i four_values(const int8_t* values) {
  int32_t four;
  std::memcpy(&four, values, sizeof four);
  return _mm512_set1_epi32(four);
}

// The sums of kBlocks * kTurnedRows rows with some tokens.
template <int Planes, int Tokens>
TQ_NOINLINE void add_turned(const ProductJob& job, const ProductRun& run, const Turned (&turned)[kBlocks],
                            const int64_t (&token)[Tokens], __m512 (&sums)[kBlocks][Tokens]) {
  const int8_t* values[Tokens];
  each<Tokens>([&](auto t) TQ_LAMBDA {
    values[t] = job.prepared.values + token[t] * Planes * job.rows.slots + run.slot;
  });
  for (int64_t i = 0; i < run.groups; ++i) {
    const int64_t group = run.group + i, first = i * run.slot_bytes();
    __m512i dot[kBlocks][Tokens][Planes];
    each<kBlocks>([&](auto b) TQ_LAMBDA {
      each<Tokens>([&](auto t) TQ_LAMBDA {
        each<Planes>([&](auto p) TQ_LAMBDA { dot[b][t][p] = _mm512_setzero_si512(); });
      });
    });
    for (int64_t column = first; column < first + run.size; column += 4) {
      __m512i bytes[kBlocks];
      each<kBlocks>([&](auto b) TQ_LAMBDA {
        bytes[b] = _mm512_load_si512(turned[b].bytes + kTurnedRows * (run.slot + column));
      });
      each<Tokens>([&](auto t) TQ_LAMBDA {
        each<Planes>([&](auto p) TQ_LAMBDA {
          const __m512i four = four_values(values[t] + p * job.rows.slots + column);
          each<kBlocks>([&](auto b) TQ_LAMBDA { dot[b][t][p] = _mm512_dpbusd_epi32(dot[b][t][p], bytes[b], four); });
        });
      });
    }
    each<Tokens>([&](auto t) TQ_LAMBDA {
      const int64_t number = token[t] * job.rows.groups + group;
      const __m512i total = _mm512_set1_epi32(job.prepared.totals[number]);
      const __m512 scale = _mm512_set1_ps(job.prepared.scales[number]);
      each<kBlocks>([&](auto b) TQ_LAMBDA {
        __m512i whole = _mm512_add_epi32(dot[b][t][Planes - 1], total);
        if constexpr (Planes == 2) whole = Avx512Sums::upper(dot[b][t][0], whole);
        const __m512 factor = _mm512_mul_ps(_mm512_load_ps(turned[b].scales + group * kTurnedRows), scale);
        sums[b][t] = _mm512_add_ps(sums[b][t], _mm512_mul_ps(_mm512_cvtepi32_ps(whole), factor));
      });
    });
  }
}

// Results of rows [start, ...) of the piece, as many as there are, for the token whose row begins at `result`.
inline void store_results(const ProductJob& job, const ProductPiece& piece, int64_t start, __m512 sums, uint8_t* result) {
  const int64_t left = piece.rows - start, row = piece.first + start;
  if (left <= 0) return;
  const __mmask16 present = static_cast<__mmask16>(left >= kTurnedRows ? 0xFFFF : (1u << left) - 1);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(sums, sums, _CMP_UNORD_Q);
  const __m512 plain = _mm512_mask_mov_ps(sums, is_nan, _mm512_set1_ps(__builtin_nanf("")));
  if (job.dtype == TQ_F32) return _mm512_mask_storeu_ps(result + 4 * row, present, plain);
  alignas(64) float values[kTurnedRows];
  alignas(32) uint16_t narrow[kTurnedRows];
  _mm512_store_ps(values, plain);
  for (int i = 0; i < kTurnedRows; ++i) narrow[i] = float_to_bfloat(values[i]);
  _mm256_mask_storeu_epi16(result + 2 * row, present, _mm256_load_si256(reinterpret_cast<const __m256i*>(narrow)));
}

// Tokens [first, first + Tokens) of the batch; those beyond its last are the last again, and dropped.
template <int Planes, int Tokens>
void multiply_tokens(const ProductJob& job, const ProductBatch& batch, const ProductPiece& piece, int64_t start,
                     const Turned (&turned)[kBlocks], int64_t first) {
  int64_t token[Tokens];
  for (int t = 0; t < Tokens; ++t) token[t] = batch.token[first + t < batch.tokens ? first + t : batch.tokens - 1];
  __m512 sums[kBlocks][Tokens];
  for (auto& block : sums) for (auto& sum : block) sum = _mm512_setzero_ps();
  for (int i = 0; i < job.rows.runs; ++i) add_turned<Planes>(job, job.rows.run[i], turned, token, sums);
  for (int t = 0; t < Tokens && first + t < batch.tokens; ++t) {
    uint8_t* const result = batch.results + (first + t) * job.result_bytes();
    for (int b = 0; b < kBlocks; ++b) store_results(job, piece, start + b * kTurnedRows, sums[b][t], result);
  }
}

template <class Reader, int Planes>
void multiply_turned(const ProductJob& job, const ProductBatch& batch, const ProductPiece& piece, uint8_t* memory) {
  const int64_t block_bytes = kTurnedRows * job.rows.slots;
  float* const scales = reinterpret_cast<float*>(memory + kBlocks * block_bytes);
  Turned turned[kBlocks];
  for (int b = 0; b < kBlocks; ++b) {
    turned[b] = {memory + b * block_bytes, scales + b * kTurnedRows * job.rows.groups};
  }
  for (int64_t start = 0; start < piece.rows; start += kBlocks * kTurnedRows) {
    for (int b = 0; b < kBlocks; ++b) turn_rows<Reader>(job, piece, start + b * kTurnedRows, turned[b]);
    int64_t first = 0;
    for (; batch.tokens - first > 2; first += kTokensTogether) {
      multiply_tokens<Planes, kTokensTogether>(job, batch, piece, start, turned, first);
    }
    for (; first < batch.tokens; ++first) multiply_tokens<Planes, 1>(job, batch, piece, start, turned, first);
  }
}

// What multiply_packed calls for the format's reader.
struct Turning {
  template <class Set, class Reader>
  static void multiply(const ProductJob& job, const ProductBatch& batch, const ProductPiece& piece, uint8_t* memory) {
    if (job.planes == 1) return multiply_turned<Reader, 1>(job, batch, piece, memory);
    return multiply_turned<Reader, 2>(job, batch, piece, memory);
  }
};

}  // namespace
}  // namespace tq
