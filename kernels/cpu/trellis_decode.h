// Decoding: a batch of groups is copied, so that nothing around the codes is read, then each becomes weights.
#pragma once

#include "trellis_coordinates.h"
#include "trellis_numbers.h"
#include "trellis_scale.h"

namespace tq {
namespace {

constexpr int kStaged = 16;  // groups copied at a time: their bytes have settled when they are read

// The scale that a group's number holds; infinite or NaN where the exponent says so.
template <int BITS>
TQ_INLINE float scale_of(uint16_t meta) {
  return half_to_float(static_cast<uint16_t>((meta & ((1u << (8 + BITS)) - 1)) << (7 - BITS))) * 0x1p-16f;
}

// The codebook's numbers, or what they are transformed to: 128 * 128 at most, which 16 bits hold.
template <class Numbers, int BITS, int G>
TQ_NOINLINE void read_numbers(const Numbers& reader, const Stream& stream, bool rotated, int16_t* numbers) {
  constexpr int kVectors = G < kShorts ? 1 : G / kShorts;
  reader.template read<BITS, G>(stream, numbers);
  if (!rotated) return;
  Shorts value[kVectors];
  each<kVectors>([&](auto i) TQ_LAMBDA { value[i] = read<Shorts>(numbers + i * kShorts); });
  transform<(G < kShorts ? G : kShorts)>(value);
  each<kVectors>([&](auto i) TQ_LAMBDA { write(numbers + i * kShorts, value[i]); });
}

// signs: nullptr where groups are not rotated.
template <class Type, int G>
TQ_NOINLINE void write_weights(const int16_t* numbers, float factor, const float* signs, uint8_t* weight) {
  for (int i = 0; i < G; i += kLanes) {
    Floats value = __builtin_convertvector(widened(read<HalfShorts>(numbers + i)), Floats) * factor;
    if (signs != nullptr) value *= read<Floats>(signs + i);
    Type::store(weight + i * Type::kBytes, value);
  }
}

template <class Type, class Numbers, int BITS, int G>
TQ_INLINE void decode_group(const Numbers& reader, const float* signs, const Stream& stream, uint8_t* weight) {
  alignas(64) int16_t numbers[G < kShorts ? kShorts : G] = {};
  read_numbers<Numbers, BITS, G>(reader, stream, signs != nullptr, numbers);
  uint16_t meta;
  std::memcpy(&meta, stream.at, sizeof meta);
  const float scale = scale_of<BITS>(meta);
  const float factor = signs != nullptr ? scale * static_cast<float>(inverse_root(G)) : scale;
  write_weights<Type, G>(numbers, factor, signs, weight);
}

template <class Type, class Numbers, int BITS, int G>
void decode_run(const TrellisDecode& job) {
  const Run run = run_of(job.columns, G);
  const int64_t count = job.rows * run.a_row;
  const Numbers reader{job.tables.codebook};
  Stream staged[kStaged] = {};
  for (int64_t first = 0; first < count; first += kStaged) {
    const int64_t present = count - first < kStaged ? count - first : kStaged;
    for (int64_t i = 0; i < present; ++i) {
      const int64_t group = first + i;
      std::memcpy(staged[i].at, job.meta + run.number(group) * kMetaBytes, kMetaBytes);
      std::memcpy(staged[i].at + kMetaBytes, job.codes + run.weight(group, G) * BITS / 8, G * BITS / 8);
    }
    for (int64_t i = 0; i < present; ++i) {
      uint8_t* const weight = job.weight + run.weight(first + i, G) * Type::kBytes;
      decode_group<Type, Numbers, BITS, G>(reader, job.tables.signs, staged[i], weight);
    }
  }
}

template <class Type, class Numbers, int BITS>
void decode_sizes(const TrellisDecode& job) {
  decode_run<Type, Numbers, BITS, 128>(job);
  decode_run<Type, Numbers, BITS, 64>(job);
  decode_run<Type, Numbers, BITS, 32>(job);
  decode_run<Type, Numbers, BITS, 16>(job);
}

template <class Type, class Numbers>
void decode_bits(const TrellisDecode& job) {
  if (job.tables.bits == 2) return decode_sizes<Type, Numbers, 2>(job);
  if (job.tables.bits == 3) return decode_sizes<Type, Numbers, 3>(job);
  return decode_sizes<Type, Numbers, 4>(job);
}

template <class Numbers>
void decode_trellis(const TrellisDecode& job) {
  if (job.dtype == TQ_BF16) return decode_bits<TrellisBfloat, Numbers>(job);
  if (job.dtype == TQ_F16) return decode_bits<TrellisHalf, Numbers>(job);
  return decode_bits<TrellisSingle, Numbers>(job);
}

}  // namespace
}  // namespace tq
