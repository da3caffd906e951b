// Activations become whole numbers, group by group: signs, rotation, signs, then the greatest number of one byte or two for the
// greatest magnitude.
#pragma once

#include "product.h"
#include "trellis_lanes.h"

namespace tq {
namespace {

constexpr uint32_t kInfinite = 0x7F800000;
constexpr uint32_t kNegligible = 0x0D800000;  // 2^-100: what is less counts as zero
constexpr float kNearest = 12582912.0f;       // 1.5 * 2^23: adding it rounds to a whole number, ties to even

// Columns [column, column + count) of a token as float32.
inline void load_activations(const ProductJob& job, int64_t token, int64_t column, int64_t count, float* values) {
  const int64_t first = token * job.rows.columns + column;
  if (job.dtype == TQ_F32) {
    std::memcpy(values, job.activations + 4 * first, static_cast<size_t>(4 * count));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, job.activations + 2 * (first + i), sizeof bits);
    values[i] = from_bits(static_cast<uint32_t>(bits) << 16);
  }
}

template <int Size>
void rotate(float* values) {
  constexpr int kVectors = Size / kLanes;
  Floats value[kVectors];
  each<kVectors>([&](auto i) TQ_LAMBDA { value[i] = read<Floats>(values + i * kLanes); });
  transform<kLanes>(value);
  each<kVectors>([&](auto i) TQ_LAMBDA { write(values + i * kLanes, value[i]); });
}

inline void rotate(float* values, int64_t size) {
  if (size == 128) rotate<128>(values);
  else if (size == 64) rotate<64>(values);
  else if (size == 32) rotate<32>(values);
  else rotate<16>(values);
}

inline void apply_signs(const float* signs, int64_t size, float* values) {
  if (signs == nullptr) return;
  for (int64_t i = 0; i < size; ++i) values[i] *= signs[i];
}

// The greatest magnitude's bits; those of NaN are greater than infinity's.
inline uint32_t greatest(const float* values) {
  uint32_t found = 0;
  for (int i = 0; i < 128; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    bits &= 0x7FFFFFFF;
    found = found > bits ? found : bits;
  }
  return found;
}

// The nearest whole number, ties to even, of one that is less than 2^22.
TQ_INLINE int32_t nearest(float value) {
  return static_cast<int32_t>(to_bits(value + kNearest) - to_bits(kNearest));
}

// Rounds values, which have room for 128, so that the greatest becomes 127 of one byte, or 127 * 255 of two, of which
// the lower one goes to `lower`. Returns the scale: NaN where a value is not finite.
inline float to_bytes(const float* values, int64_t slot, int8_t* upper, int8_t* lower) {
  const uint32_t most = greatest(values);
  const float whole = lower == nullptr ? kGreatestByte : kGreatestByte * kUpperByte;
  if (most >= kInfinite || most < kNegligible) {
    std::memset(upper, 0, static_cast<size_t>(slot));
    if (lower != nullptr) std::memset(lower, 0, static_cast<size_t>(slot));
    return most >= kInfinite ? __builtin_nanf("") : 0.0f;
  }
  const float inverse = whole / from_bits(most);
  if (lower == nullptr) {
    for (int64_t i = 0; i < slot; ++i) upper[i] = static_cast<int8_t>(nearest(values[i] * inverse));
  } else {
    for (int64_t i = 0; i < slot; ++i) {
      const int32_t number = nearest(values[i] * inverse);
      const int32_t high = nearest(static_cast<float>(number) * (1.0f / kUpperByte));
      upper[i] = static_cast<int8_t>(high);
      lower[i] = static_cast<int8_t>(number - kUpperByte * high);
    }
  }
  return from_bits(most) / whole;
}

// Adds -128 * times the sum of each lane's activations: what unsigned codes, 128 too great, are too much.
inline void correct(const int8_t* bytes, int64_t slot, int32_t times, int32_t* corrections) {
  for (int lane = 0; lane < kProductLanes; ++lane) {
    int32_t sum = 0;
    for (int64_t i = 4 * lane; i < slot; i += 64) sum += bytes[i] + bytes[i + 1] + bytes[i + 2] + bytes[i + 3];
    corrections[lane] += -128 * times * sum;
  }
}

inline void prepare_group(const ProductJob& job, const ProductRun& run, int64_t token, int64_t index) {
  const TqProductFormat& format = *job.format;
  const int64_t column = run.column + index * run.size, left = job.rows.columns - column;
  alignas(64) float values[128] = {};
  load_activations(job, token, column, left < run.size ? left : run.size, values);
  if (format.rotated) {
    apply_signs(format.signs_before, run.size, values);
    rotate(values, run.size);
    apply_signs(format.signs_after, run.size, values);
  }
  const int64_t number = token * job.rows.groups + run.group + index, slot = run.slot_bytes();
  int8_t* const upper = job.prepared.values + token * job.planes * job.rows.slots + run.slot + index * slot;
  int8_t* const lower = job.planes == 1 ? nullptr : upper + job.rows.slots;
  int32_t* const corrections = job.prepared.corrections + number * kProductLanes;
  job.prepared.scales[number] = to_bytes(values, slot, upper, lower) * run.factor;
  std::memset(corrections, 0, kProductLanes * sizeof *corrections);
  correct(upper, slot, lower == nullptr ? 1 : kUpperByte, corrections);
  if (lower != nullptr) correct(lower, slot, 1, corrections);
  int32_t total = 0;
  for (int lane = 0; lane < kProductLanes; ++lane) total += corrections[lane];
  job.prepared.totals[number] = total;
}

inline void prepare_activations(const ProductJob& job, int64_t first, int64_t last) {
  for (int64_t token = first; token < last; ++token) {
    for (int i = 0; i < job.rows.runs; ++i) {
      const ProductRun& run = job.rows.run[i];
      for (int64_t index = 0; index < run.groups; ++index) prepare_group(job, run, token, index);
    }
  }
}

}  // namespace
}  // namespace tq
