// Encoding: groups of one size, as many side by side as the search takes, one search for each candidate scale.
#pragma once

#include "trellis_coordinates.h"
#include "trellis_paths.h"
#include "trellis_scale.h"

namespace tq {
namespace {

// Paths<BITS>: steps through the trellis; Numbers: reading of streams; both of an instruction set.
template <class Paths, class Numbers, int BITS>
class TrellisEncoder {
 public:
  explicit TrellisEncoder(const TrellisEncode& job) : job_(job), numbers_{job.tables.codebook} {
    fill_costs<Paths, BITS>(job.tables.codebook, job.costs);
  }

  // Encodes the groups of size G in the first `rows` rows; returns the first row that cannot be encoded, or -1.
  template <class Type, int G>
  int64_t encode_run(int64_t rows) {
    const Run run = run_of(job_.columns, G);
    const int64_t count = rows * run.a_row;
    for (int64_t first = 0; first < count; first += kTogether) {
      for (int lane = 0; lane < kTogether; ++lane) {
        const int64_t group = first + lane < count ? first + lane : count - 1;
        const uint8_t* const from = job_.weight + run.weight(group, G) * Type::kBytes;
        read_coordinates<Type, G>(from, job_.tables.signs, job_.deviation, coordinates_[lane]);
      }
      search<G>();
      for (int lane = 0; lane < kTogether && first + lane < count; ++lane) {
        const int64_t group = first + lane;
        uint8_t* const codes = job_.codes + run.weight(group, G) * BITS / 8;
        if (!write_group<G>(lane, codes, run.number(group))) return run.row(group);
      }
    }
    return -1;
  }

 private:
  static constexpr int kTogether = Paths::kTogether;

  template <int G>
  void search() {
    for (int lane = 0; lane < kTogether; ++lane) best_[lane] = {};
    for (int32_t candidate = 0; candidate < job_.candidates; ++candidate) {
      for (int lane = 0; lane < kTogether; ++lane) find_cells<G>(job_.multipliers[candidate], lane);
      search_.forward(cells_, G, job_.costs);
      search_.backward(G, streams_);
      for (int lane = 0; lane < kTogether; ++lane) compare<G>(lane);
    }
  }

  template <int G>
  TQ_NOINLINE void find_cells(int32_t multiplier, int lane) {
    constexpr int32_t kHalf = Trellis<BITS>::kCells / 2;
    for (int i = 0; i < G; ++i) {
      const int32_t cell = coordinates_[lane].at[i] * multiplier >> 16;
      const int32_t high = cell < kHalf - 1 ? cell : kHalf - 1;
      cells_[lane][i] = static_cast<uint16_t>((high > -kHalf ? high : -kHalf) + kHalf);
    }
  }

  template <int G>
  TQ_NOINLINE void compare(int lane) {
    alignas(64) int16_t numbers[G];
    numbers_.template read<BITS, G>(streams_[lane], numbers);
    const Fit fit = fit_of(coordinates_[lane].at, numbers, G);
    const double gain = fit.gain();
    if (!(gain > best_[lane].gain)) return;
    best_[lane] = {gain, fit.scale(), streams_[lane]};
  }

  // False where a weight is not finite or the scale too large.
  template <int G>
  bool write_group(int lane, uint8_t* codes, int64_t number) {
    if (!coordinates_[lane].finite) return false;
    Best& best = best_[lane];
    double scale = best.scale / static_cast<double>(coordinates_[lane].inverse);
    if (job_.tables.signs != nullptr) scale *= inverse_root(G);
    const uint32_t field = scale_field(scale, coordinates_[lane].exponent, BITS + 3);
    if (field >= 31u << (BITS + 3)) return false;
    if (field == 0) best.stream = {};
    const uint32_t start = best.stream.at[1] & (0xFF00u >> (8 - BITS)) & 0xFF;
    const uint16_t meta = static_cast<uint16_t>(field | start << 8);
    std::memcpy(codes, best.stream.at + kMetaBytes, G * BITS / 8);
    std::memcpy(job_.meta + number * kMetaBytes, &meta, sizeof meta);
    return true;
  }

  struct Best {
    double gain = 0.0;
    double scale = 0.0;
    Stream stream = {};
  };

  const TrellisEncode& job_;
  const Numbers numbers_;
  Search<Paths, BITS> search_;
  Coordinates coordinates_[kTogether] = {};
  alignas(64) uint16_t cells_[kTogether][kLargestGroup];
  Stream streams_[kTogether];
  Best best_[kTogether];
};

template <class Encoder, class Type>
int64_t encode_rows(Encoder& encoder, int64_t rows) {
  int64_t broken = -1;
  const auto found = [&](int64_t row) {
    if (row >= 0) broken = rows = row;
  };
  found(encoder.template encode_run<Type, 128>(rows));
  found(encoder.template encode_run<Type, 64>(rows));
  found(encoder.template encode_run<Type, 32>(rows));
  found(encoder.template encode_run<Type, 16>(rows));
  return broken;
}

template <template <int> class Paths, class Numbers, int BITS>
int64_t encode_bits(const TrellisEncode& job) {
  using Encoder = TrellisEncoder<Paths<BITS>, Numbers, BITS>;
  Encoder encoder(job);
  if (job.dtype == TQ_BF16) return encode_rows<Encoder, TrellisBfloat>(encoder, job.rows);
  if (job.dtype == TQ_F16) return encode_rows<Encoder, TrellisHalf>(encoder, job.rows);
  return encode_rows<Encoder, TrellisSingle>(encoder, job.rows);
}

template <template <int> class Paths, class Numbers>
int64_t encode_trellis(const TrellisEncode& job) {
  if (job.tables.bits == 2) return encode_bits<Paths, Numbers, 2>(job);
  if (job.tables.bits == 3) return encode_bits<Paths, Numbers, 3>(job);
  return encode_bits<Paths, Numbers, 4>(job);
}

}  // namespace
}  // namespace tq
