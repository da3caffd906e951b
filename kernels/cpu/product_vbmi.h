// Products of packed weights with AVX-512 and its permutations (VBMI) and dot products (VNNI) of bytes. Numbers are kept
// 128 too great, as unsigned bytes; what that is too much is known beforehand.
#pragma once

#include "product_avx512.h"

namespace tq {
namespace {

// Of 64 weights, eight in a word: which bytes of the codes a word takes, and by how much each weight is shifted there.
// FIRST is the first word's byte; -1 is the one before the codes.
template <int BITS, int FIRST, int SHIFT>
struct alignas(64) Spread {
  uint8_t bytes[64];
  uint8_t shifts[64];

  constexpr Spread() : bytes(), shifts() {
    for (int i = 0; i < 64; ++i) {
      bytes[i] = static_cast<uint8_t>((FIRST + BITS * (i / 8) + i % 8) & 63);
      shifts[i] = static_cast<uint8_t>(SHIFT + BITS * (i % 8));
    }
  }
};

struct VbmiProduct : Avx512Sums {
  static TQ_INLINE Integers start(const int32_t* corrections) { return _mm512_loadu_si512(corrections); }
  static TQ_INLINE Integers dot(Integers sum, Bytes bytes, const int8_t* values) {
    return _mm512_dpbusd_epi32(sum, bytes, _mm512_loadu_si512(values));
  }

  static TQ_INLINE __mmask64 present(int64_t bytes) {
    return bytes >= 64 ? ~0ull : bytes <= 0 ? 0 : (1ull << bytes) - 1;
  }
  // 64 entries of a table of `count`, over and over.
  static TQ_INLINE __m512i entries(const int8_t* table, int count) {
    alignas(64) uint8_t found[64];
    for (int i = 0; i < 64; ++i) found[i] = static_cast<uint8_t>(table[i % count] + 128);
    return _mm512_load_si512(found);
  }

  template <int BITS>
  struct Trellis {
    static constexpr int kBits = BITS;
    using Part = __mmask64;
    __m512i table[4];

    explicit Trellis(const TqProductFormat& format) {
      each<4>([&](auto i) TQ_LAMBDA { table[i] = entries(format.table + 64 * i, 64); });
    }
    static Part part(int64_t size) { return present(bytes_of(size, BITS)); }

    template <int Halves>
    TQ_INLINE void read(const uint8_t* codes, const uint8_t* meta, Part part, Bytes (&bytes)[Halves]) const {
      static constexpr Spread<BITS, -1, BITS> kFirst;
      static constexpr Spread<BITS, 8 * BITS - 1, BITS> kSecond;
      const __m512i all = _mm512_maskz_loadu_epi8(part, codes);
      const __m512i shifts = _mm512_load_si512(kFirst.shifts);
      __m512i words = _mm512_permutexvar_epi8(_mm512_load_si512(kFirst.bytes), all);
      words = _mm512_mask_set1_epi8(words, 1, static_cast<char>(meta[1]));
      bytes[0] = look_up(_mm512_multishift_epi64_epi8(shifts, words));
      if constexpr (Halves == 2) {
        words = _mm512_permutexvar_epi8(_mm512_load_si512(kSecond.bytes), all);
        bytes[1] = look_up(_mm512_multishift_epi64_epi8(shifts, words));
      }
    }

    TQ_INLINE __m512i look_up(__m512i windows) const {
      const __m512i below = _mm512_permutex2var_epi8(table[0], windows, table[1]);
      const __m512i above = _mm512_permutex2var_epi8(table[2], windows, table[3]);
      return _mm512_mask_blend_epi8(_mm512_movepi8_mask(windows), below, above);
    }
  };

  template <int BITS>
  struct Table {
    static constexpr int kBits = BITS;
    using Part = __mmask64;
    __m512i table;

    explicit Table(const TqProductFormat& format) : table(entries(format.table, 1 << BITS)) {}
    static Part part(int64_t size) { return present(bytes_of(size, BITS)); }

    template <int Halves>
    TQ_INLINE void read(const uint8_t* codes, const uint8_t*, Part part, Bytes (&bytes)[Halves]) const {
      static constexpr Spread<BITS, 0, 0> kFirst;
      static constexpr Spread<BITS, 8 * BITS, 0> kSecond;
      const __m512i all = _mm512_maskz_loadu_epi8(part, codes);
      const __m512i shifts = _mm512_load_si512(kFirst.shifts);
      const __m512i first = _mm512_permutexvar_epi8(_mm512_load_si512(kFirst.bytes), all);
      bytes[0] = _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(shifts, first), table);
      if constexpr (Halves == 2) {
        const __m512i second = _mm512_permutexvar_epi8(_mm512_load_si512(kSecond.bytes), all);
        bytes[1] = _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(shifts, second), table);
      }
    }
  };

  struct Plain {
    static constexpr int kBits = 8;
    struct Part {
      __mmask64 of[2];
    };

    explicit Plain(const TqProductFormat&) {}
    static Part part(int64_t size) { return {{present(size), present(size - 64)}}; }

    template <int Halves>
    TQ_INLINE void read(const uint8_t* codes, const uint8_t*, Part part, Bytes (&bytes)[Halves]) const {
      each<Halves>([&](auto i) TQ_LAMBDA {
        const __m512i signed_bytes = _mm512_maskz_loadu_epi8(part.of[i], codes + 64 * i);
        bytes[i] = _mm512_xor_si512(signed_bytes, _mm512_set1_epi8(-128));
      });
    }
  };
};

}  // namespace
}  // namespace tq
