// From a group's stream to the codebook's numbers with AVX2, 32 at a time.
#pragma once

#include <immintrin.h>

#include "trellis_numbers.h"

namespace tq {
namespace {

// Where the windows of eight weights lie in their bytes: the two bytes of each, and the factor that moves it to the
// upper one.
template <int BITS>
struct alignas(16) Places {
  uint8_t bytes[16];
  uint16_t factors[8];

  constexpr Places() : bytes(), factors() {
    for (int i = 0; i < 8; ++i) {
      const int bit = BITS * (i + 1);
      bytes[2 * i] = static_cast<uint8_t>(bit / 8);
      bytes[2 * i + 1] = static_cast<uint8_t>(bit / 8 + 1);
      factors[i] = static_cast<uint16_t>(1 << (8 - bit % 8));
    }
  }
};

TQ_INLINE __m128i load_128(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

// Entry `index` of 16 << DEPTH entries; the bit that picks a half is the highest of index << (4 - DEPTH).
template <int DEPTH>
TQ_INLINE __m256i entry_256(const int8_t* table, __m256i index, __m256i low) {
  if constexpr (DEPTH == 0) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_128(table)), low);
  } else {
    const __m256i below = entry_256<DEPTH - 1>(table, index, low);
    const __m256i above = entry_256<DEPTH - 1>(table + (8 << DEPTH), index, low);
    return _mm256_blendv_epi8(below, above, _mm256_slli_epi16(index, 4 - DEPTH));
  }
}

struct Avx2Numbers {
  const int8_t* codebook;

  template <int BITS, int G>
  TQ_INLINE void read(const Stream& stream, int16_t* numbers) const {
    if constexpr (G < 32) {
      GenericNumbers{codebook}.read<BITS, G>(stream, numbers);
    } else {
      each<G / 32>([&](auto i) TQ_LAMBDA { read_32<BITS>(stream.at + 1 + 4 * BITS * i, numbers + 32 * i); });
    }
  }

  template <int BITS>
  TQ_INLINE void read_32(const uint8_t* stream, int16_t* numbers) const {
    const __m256i windows = _mm256_packus_epi16(windows_16<BITS>(stream), windows_16<BITS>(stream + BITS));
    const __m256i low = _mm256_and_si256(windows, _mm256_set1_epi8(15));
    const __m256i found = entry_256<4>(codebook, windows, low);
    const __m256i first = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(found));
    const __m256i second = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(found, 1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(numbers), first);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(numbers + 16), second);
  }

  // Windows 0 to 7 in the lower half, 16 to 23 in the upper one: packing puts 8 to 15 and 24 to 31 beside them.
  template <int BITS>
  static TQ_INLINE __m256i windows_16(const uint8_t* stream) {
    static constexpr Places<BITS> kPlaces;
    const __m256i first = _mm256_castsi128_si256(load_128(stream));
    const __m256i bytes = _mm256_inserti128_si256(first, load_128(stream + 2 * BITS), 1);
    const __m256i both = _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(load_128(kPlaces.bytes)));
    const __m256i factors = _mm256_broadcastsi128_si256(load_128(kPlaces.factors));
    return _mm256_srli_epi16(_mm256_mullo_epi16(both, factors), 8);
  }
};

}  // namespace
}  // namespace tq
