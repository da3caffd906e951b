// From a group's stream to the codebook's numbers with AVX-512, 64 at a time.
#pragma once

#include "trellis_numbers_avx2.h"

namespace tq {
namespace {

// Entry `index` of 16 << DEPTH entries; is_set[d] says where bit 4 + d of the index is set.
template <int DEPTH>
TQ_INLINE __m512i entry_512(const int8_t* table, __m512i low, const __mmask64* is_set) {
  const auto row = [&](int i) TQ_LAMBDA { return _mm512_broadcast_i32x4(load_128(table + 16 * i)); };
  if constexpr (DEPTH == 1) {
    return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(row(0), low), is_set[0], row(1), low);
  } else {
    const __m512i below = entry_512<DEPTH - 1>(table, low, is_set);
    const __m512i above = entry_512<DEPTH - 1>(table + (8 << DEPTH), low, is_set);
    return _mm512_mask_blend_epi8(is_set[DEPTH - 1], below, above);
  }
}

struct Avx512Numbers {
  const int8_t* codebook;

  template <int BITS, int G>
  TQ_INLINE void read(const Stream& stream, int16_t* numbers) const {
    if constexpr (G < 64) {
      Avx2Numbers{codebook}.read<BITS, G>(stream, numbers);
    } else {
      each<G / 64>([&](auto i) TQ_LAMBDA { read_64<BITS>(stream.at + 1 + 8 * BITS * i, numbers + 64 * i); });
    }
  }

  template <int BITS>
  TQ_INLINE void read_64(const uint8_t* stream, int16_t* numbers) const {
    const __m512i windows = _mm512_packus_epi16(windows_32<BITS>(stream), windows_32<BITS>(stream + BITS));
    const __m512i low = _mm512_and_si512(windows, _mm512_set1_epi8(15));
    __mmask64 is_set[4];
    each<4>([&](auto d) TQ_LAMBDA {
      is_set[d] = _mm512_test_epi8_mask(windows, _mm512_set1_epi8(static_cast<char>(16 << d)));
    });
    const __m512i found = entry_512<4>(codebook, low, is_set);
    _mm512_storeu_si512(numbers, _mm512_cvtepi8_epi16(_mm512_castsi512_si256(found)));
    _mm512_storeu_si512(numbers + 32, _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(found, 1)));
  }

  // Windows 0 to 7, 16 to 23, 32 to 39 and 48 to 55 in the four parts: packing puts those between beside them.
  template <int BITS>
  static TQ_INLINE __m512i windows_32(const uint8_t* stream) {
    static constexpr Places<BITS> kPlaces;
    __m512i bytes = _mm512_castsi128_si512(load_128(stream));
    bytes = _mm512_mask_broadcast_i64x2(bytes, 0x0C, load_128(stream + 2 * BITS));
    bytes = _mm512_mask_broadcast_i64x2(bytes, 0x30, load_128(stream + 4 * BITS));
    bytes = _mm512_mask_broadcast_i64x2(bytes, 0xC0, load_128(stream + 6 * BITS));
    const __m512i both = _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(load_128(kPlaces.bytes)));
    const __m512i factors = _mm512_broadcast_i32x4(load_128(kPlaces.factors));
    return _mm512_srli_epi16(_mm512_mullo_epi16(both, factors), 8);
  }
};

}  // namespace
}  // namespace tq
