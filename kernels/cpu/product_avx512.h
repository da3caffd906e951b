// Products of packed weights with AVX-512 (F, BW, DQ, VL): a lane for each four columns of 64.
#pragma once

#include "product_avx2.h"
#include "trellis_numbers_avx512.h"

namespace tq {
namespace {

// What does not depend on how bytes are multiplied.
struct Avx512Sums {
  using Bytes = __m512i;
  using Integers = __m512i;
  using Sums = __m512;

  template <int Tokens>
  static constexpr int rows() {
    return Tokens == 8 ? 2 : 4;
  }

  static TQ_INLINE Sums zero() { return _mm512_setzero_ps(); }
  static TQ_INLINE Integers none() { return _mm512_setzero_si512(); }
  // Sums of upper bytes as what they count, 255, and others.
  static TQ_INLINE Integers upper(Integers sum, Integers other) {
    return _mm512_add_epi32(_mm512_sub_epi32(_mm512_slli_epi32(sum, 8), sum), other);
  }
  static TQ_INLINE Sums add(Sums sum, Integers dot, float factor) {
    return _mm512_add_ps(sum, _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(factor)));
  }
  static TQ_INLINE float total(Sums sum) {
    return total_of_eight(_mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1)));
  }
};

struct Avx512Product : Avx512Sums {
  static TQ_INLINE Integers start(const int32_t*) { return _mm512_setzero_si512(); }

  // See AVX2: magnitudes times signed activations.
  static TQ_INLINE Integers dot(Integers sum, Bytes bytes, const int8_t* values) {
    const __m512i value = _mm512_loadu_si512(values);
    const __m512i sign = _mm512_mask_sub_epi8(value, _mm512_movepi8_mask(bytes), _mm512_setzero_si512(), value);
    const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(bytes), sign);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }

  template <int BITS>
  static TQ_INLINE __m512i windows(const uint8_t* stream) {
    return _mm512_packus_epi16(Avx512Numbers::windows_32<BITS>(stream), Avx512Numbers::windows_32<BITS>(stream + BITS));
  }

  template <int BITS>
  struct Trellis : PortableProduct::Trellis<BITS> {
    using Base = PortableProduct::Trellis<BITS>;
    using Base::Base;

    template <int Halves>
    TQ_INLINE void read(const uint8_t* codes, const uint8_t* meta, int64_t part, Bytes (&bytes)[Halves]) const {
      const CodeStream<8 * BITS * Halves> stream(meta[1], codes, part);
      each<Halves>([&](auto i) TQ_LAMBDA {
        const __m512i found = windows<BITS>(stream.at + 8 * BITS * i);
        __mmask64 is_set[4];
        each<4>([&](auto d) TQ_LAMBDA {
          is_set[d] = _mm512_test_epi8_mask(found, _mm512_set1_epi8(static_cast<char>(16 << d)));
        });
        bytes[i] = entry_512<4>(this->table, _mm512_and_si512(found, _mm512_set1_epi8(15)), is_set);
      });
    }
  };

  template <int BITS>
  struct Table {
    static constexpr int kBits = BITS;
    using Part = int64_t;
    __m512i table;

    explicit Table(const TqProductFormat& format) {
      int8_t entries[16] = {};
      std::memcpy(entries, format.table, 1 << BITS);
      table = _mm512_broadcast_i32x4(load_128(entries));
    }
    static Part part(int64_t size) { return bytes_of(size, BITS); }

    template <int Halves>
    TQ_INLINE void read(const uint8_t* codes, const uint8_t*, Part part, Bytes (&bytes)[Halves]) const {
      const CodeStream<8 * BITS * Halves> stream(0, codes, part);
      const __m512i mask = _mm512_set1_epi8((1 << BITS) - 1);
      each<Halves>([&](auto i) TQ_LAMBDA {
        const __m512i found = _mm512_srli_epi16(windows<BITS>(stream.at + 8 * BITS * i), 8 - BITS);
        bytes[i] = _mm512_shuffle_epi8(table, _mm512_and_si512(found, mask));
      });
    }
  };

  struct Plain : PortableProduct::Plain {
    using PortableProduct::Plain::Plain;

    template <int Halves>
    TQ_INLINE void read(const uint8_t* codes, const uint8_t*, Part part, Bytes (&bytes)[Halves]) const {
      each<Halves>([&](auto i) TQ_LAMBDA {
        const int64_t left = part - 64 * i;
        const __mmask64 present = left >= 64 ? ~0ull : (1ull << left) - 1;
        bytes[i] = _mm512_maskz_loadu_epi8(present, codes + 64 * i);
      });
    }
  };
};

}  // namespace
}  // namespace tq
