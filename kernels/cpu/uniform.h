// Uniform quantisation to 8 or 4 bits with a half-precision scale a group: the loops. The rules are told in
// tq_kernels/uniform.py.
//
// A short group at the end of a row is filled with zeros, which change no scale, no sum and no code. Left out: threads,
// and what an argument may be.
#pragma once

#include "uniform_interface.h"
#include "uniform_search.h"

namespace tq {
namespace {

constexpr int kRun = 32;  // every group is so many weights, or a multiple

// Where groups lie, one after the other through all rows.
class Place {
 public:
  explicit Place(const UniformShape& shape) : shape_(shape) {}
  int64_t row() const { return row_; }
  int64_t column() const { return column_; }
  int64_t count() const { return least_of(shape_.group, shape_.columns - column_); }
  bool within() const { return row_ < shape_.rows; }
  void advance() {
    column_ += shape_.group;
    if (column_ < shape_.columns) return;
    column_ = 0;
    ++row_;
  }

 private:
  static int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }
  UniformShape shape_;
  int64_t row_ = 0;
  int64_t column_ = 0;
};

// As many groups as there are lanes.
template <class Type>
struct Batch {
  typename Type::Integer words[kLanes][kLargestGroup];
  Floats transposed[kLargestGroup];  // weight i of each group; the search alone needs it
  float above[kLanes];
  float below[kLanes];
};

template <class Type>
void load(const UniformEncode& job, const Place& place, typename Type::Integer* words) {
  constexpr int64_t kBytes = sizeof(typename Type::Integer);
  const int64_t start = place.row() * job.shape.columns + place.column();
  std::memcpy(words, job.weight + start * kBytes, static_cast<size_t>(place.count() * kBytes));
  for (int64_t i = place.count(); i < job.shape.group; ++i) words[i] = 0;
}

// Numbers that are not negative are ordered as their words are, and NaN and Inf come last; the others are less than 0.
template <class Type>
void reach_of(Batch<Type>& batch, int lane, int64_t group) {
  using Integer = typename Type::Integer;
  constexpr Integer kSign = static_cast<Integer>(Integer{1} << (8 * sizeof(Integer) - 1));
  const Integer* words = batch.words[lane];
  Integer above = 0, below = 0;
  for (int64_t start = 0; start < group; start += kRun) {
    for (int i = 0; i < kRun; ++i) {
      const Integer word = words[start + i], opposite = static_cast<Integer>(word ^ kSign);
      above = word > above ? word : above;
      below = opposite > below ? opposite : below;
    }
  }
  batch.above[lane] = Type::widen(above);
  batch.below[lane] = Type::widen(below);
}

template <class Type>
void transpose(Batch<Type>& batch, int64_t group) {
  float lanes[kLargestGroup * kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    float weights[kLargestGroup];
    for (int64_t start = 0; start < group; start += kRun) {
      for (int i = 0; i < kRun; ++i) weights[start + i] = Type::widen(batch.words[lane][start + i]);
    }
    for (int64_t i = 0; i < group; ++i) lanes[i * kLanes + lane] = weights[i];
  }
  std::memcpy(batch.transposed, lanes, static_cast<size_t>(group) * sizeof(Floats));
}

// Codes of one group, a byte each.
template <class Type, class Bits>
void quantise(const typename Type::Integer* words, int64_t group, float scale, uint8_t* codes) {
  for (int64_t start = 0; start < group; start += kRun) {
    for (int i = 0; i < kRun; ++i) {
      codes[start + i] = static_cast<uint8_t>(Bits::clamped(nearest(Type::widen(words[start + i]) / scale)));
    }
  }
}

template <class Bits>
int64_t row_bytes(int64_t columns) { return Bits::kSigned ? (columns + 1) / 2 : columns; }

template <class Bits>
void write_codes(const UniformEncode& job, const Place& place, const uint8_t* codes) {
  uint8_t* row = job.codes + place.row() * row_bytes<Bits>(job.shape.columns);
  if constexpr (!Bits::kSigned) {
    std::memcpy(row + place.column(), codes, static_cast<size_t>(place.count()));
  } else {
    uint8_t bytes[kLargestGroup / 2];
    for (int64_t start = 0; start < job.shape.group / 2; start += kRun / 2) {
      for (int i = 0; i < kRun / 2; ++i) {
        const int64_t even = 2 * (start + i);
        bytes[start + i] = static_cast<uint8_t>((codes[even] & 15) | (codes[even + 1] << 4));
      }
    }
    std::memcpy(row + place.column() / 2, bytes, static_cast<size_t>((place.count() + 1) / 2));
  }
}

template <class Type, class Bits, bool kSearch>
Floats scales_of(Batch<Type>& batch, int64_t group) {
  Reach reach;
  std::memcpy(&reach.above, batch.above, sizeof(Floats));
  std::memcpy(&reach.below, batch.below, sizeof(Floats));
  if constexpr (!kSearch) return candidate<Bits>(reach, 0);
  transpose(batch, group);
  return searched_scale<Bits>(batch.transposed, group, reach);
}

// Reads groups into the lanes, as far as there are any. Returns the row of the first one that is refused, or -1.
template <class Type, class Bits>
int64_t read_batch(const UniformEncode& job, Place place, Batch<Type>& batch) {
  constexpr float kGreatest = greatest_magnitude<Type, Bits>();
  for (int lane = 0; lane < kLanes && place.within(); ++lane, place.advance()) {
    load<Type>(job, place, batch.words[lane]);
    reach_of(batch, lane, job.shape.group);
    if (!(batch.above[lane] <= kGreatest && batch.below[lane] <= kGreatest)) return place.row();
  }
  return -1;
}

template <class Type, class Bits, bool kSearch>
int64_t encode_groups(const UniformEncode& job) {
  Batch<Type> batch = {};
  uint8_t* scales = job.scales;
  for (Place place(job.shape); place.within();) {
    const int64_t refused = read_batch<Type, Bits>(job, place, batch);
    if (refused >= 0) return refused;
    const Floats scale = scales_of<Type, Bits, kSearch>(batch, job.shape.group);
    for (int lane = 0; lane < kLanes && place.within(); ++lane, place.advance()) {
      uint8_t codes[kLargestGroup];
      quantise<Type, Bits>(batch.words[lane], job.shape.group, scale[lane], codes);
      write_codes<Bits>(job, place, codes);
      const uint16_t half = float_to_half(scale[lane]);
      std::memcpy(scales, &half, sizeof half);
      scales += sizeof half;
    }
  }
  return -1;
}

template <class Type>
void multiply(const int8_t* codes, int64_t count, float scale, uint8_t* weight) {
  using Integer = typename Type::Integer;
  constexpr int64_t kBytes = sizeof(Integer);
  for (int64_t i = 0; i < count; ++i) {
    const Integer word = Type::narrow(static_cast<float>(codes[i]) * scale);
    std::memcpy(weight + i * kBytes, &word, sizeof word);
  }
}

// The sign of four bits is carried into the eight.
inline void unpack(const uint8_t* bytes, int64_t count, int8_t* codes) {
  for (int64_t i = 0; i < count; ++i) {
    codes[2 * i] = static_cast<int8_t>(((bytes[i] & 15) ^ 8) - 8);
    codes[2 * i + 1] = static_cast<int8_t>(((bytes[i] >> 4) ^ 8) - 8);
  }
}

template <class Type, class Bits>
void decode_groups(const UniformDecode& job) {
  constexpr int64_t kBytes = sizeof(typename Type::Integer);
  const uint8_t* scales = job.scales;
  for (Place place(job.shape); place.within(); place.advance()) {
    uint16_t half;
    std::memcpy(&half, scales, sizeof half);
    scales += sizeof half;
    const uint8_t* row = job.codes + place.row() * row_bytes<Bits>(job.shape.columns);
    uint8_t* weight = job.weight + (place.row() * job.shape.columns + place.column()) * kBytes;
    if constexpr (!Bits::kSigned) {
      multiply<Type>(reinterpret_cast<const int8_t*>(row) + place.column(), place.count(), half_to_float(half), weight);
    } else {
      int8_t codes[kLargestGroup];
      unpack(row + place.column() / 2, (place.count() + 1) / 2, codes);
      multiply<Type>(codes, place.count(), half_to_float(half), weight);
    }
  }
}

}  // namespace
}  // namespace tq
