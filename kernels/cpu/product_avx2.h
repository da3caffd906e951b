// Products of packed weights with AVX2: lanes 0 to 7 are of the lower 32 columns of 64, lanes 8 to 15 of the upper ones.
#pragma once

#include "product_portable.h"
#include "trellis_numbers_avx2.h"

namespace tq {
namespace {

// The last three steps of adding lanes up.
TQ_INLINE float total_of_eight(__m256 sum) {
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
}

struct Avx2Product {
  struct Bytes {
    __m256i at[2];
  };
  struct Integers {
    __m256i at[2];
  };
  struct Sums {
    __m256 at[2];
  };

  template <int Tokens>
  static constexpr int rows() {
    return Tokens == 1 ? 2 : 1;
  }

  static TQ_INLINE Sums zero() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
  static TQ_INLINE Integers none() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
  static TQ_INLINE Integers start(const int32_t*) { return none(); }

  // Sums of upper bytes as what they count, 255, and others.
  static TQ_INLINE __m256i upper(__m256i sum, __m256i other) {
    return _mm256_add_epi32(_mm256_sub_epi32(_mm256_slli_epi32(sum, 8), sum), other);
  }
  static TQ_INLINE Integers upper(Integers sum, const Integers& other) {
    return {{upper(sum.at[0], other.at[0]), upper(sum.at[1], other.at[1])}};
  }

  // Magnitudes times signed activations: two products are at most 2 * 128 * 127, which 16 bits hold.
  static TQ_INLINE __m256i dot(__m256i sum, __m256i bytes, const int8_t* values) {
    const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(bytes), _mm256_sign_epi8(value, bytes));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static TQ_INLINE Integers dot(Integers sum, const Bytes& bytes, const int8_t* values) {
    return {{dot(sum.at[0], bytes.at[0], values), dot(sum.at[1], bytes.at[1], values + 32)}};
  }

  static TQ_INLINE __m256 add(__m256 sum, __m256i dot, __m256 factor) {
    return _mm256_add_ps(sum, _mm256_mul_ps(_mm256_cvtepi32_ps(dot), factor));
  }
  static TQ_INLINE Sums add(Sums sum, const Integers& dot, float factor) {
    const __m256 all = _mm256_set1_ps(factor);
    return {{add(sum.at[0], dot.at[0], all), add(sum.at[1], dot.at[1], all)}};
  }

  static TQ_INLINE float total(const Sums& sum) { return total_of_eight(_mm256_add_ps(sum.at[0], sum.at[1])); }

  // 32 windows, each ending with its weight's own bits; the stream begins one byte before the codes.
  template <int BITS>
  static TQ_INLINE __m256i windows(const uint8_t* stream) {
    return _mm256_packus_epi16(Avx2Numbers::windows_16<BITS>(stream), Avx2Numbers::windows_16<BITS>(stream + BITS));
  }

  template <int BITS>
  struct Trellis : PortableProduct::Trellis<BITS> {
    using Base = PortableProduct::Trellis<BITS>;
    using Base::Base;

    template <int Halves>
    TQ_INLINE void read(const uint8_t* codes, const uint8_t* meta, int64_t part, Bytes (&bytes)[Halves]) const {
      const CodeStream<8 * BITS * Halves> stream(meta[1], codes, part);
      each<2 * Halves>([&](auto i) TQ_LAMBDA {
        const __m256i found = windows<BITS>(stream.at + 4 * BITS * i);
        const __m256i low = _mm256_and_si256(found, _mm256_set1_epi8(15));
        bytes[i / 2].at[i % 2] = entry_256<4>(this->table, found, low);
      });
    }
  };

  template <int BITS>
  struct Table {
    static constexpr int kBits = BITS;
    using Part = int64_t;
    __m256i table;

    explicit Table(const TqProductFormat& format) {
      int8_t entries[16] = {};
      std::memcpy(entries, format.table, 1 << BITS);
      table = _mm256_broadcastsi128_si256(load_128(entries));
    }
    static Part part(int64_t size) { return bytes_of(size, BITS); }

    template <int Halves>
    TQ_INLINE void read(const uint8_t* codes, const uint8_t*, Part part, Bytes (&bytes)[Halves]) const {
      const CodeStream<8 * BITS * Halves> stream(0, codes, part);
      const __m256i mask = _mm256_set1_epi8((1 << BITS) - 1);
      each<2 * Halves>([&](auto i) TQ_LAMBDA {
        const __m256i found = _mm256_srli_epi16(windows<BITS>(stream.at + 4 * BITS * i), 8 - BITS);
        bytes[i / 2].at[i % 2] = _mm256_shuffle_epi8(table, _mm256_and_si256(found, mask));
      });
    }
  };

  struct Plain : PortableProduct::Plain {
    using PortableProduct::Plain::Plain;

    template <int Halves>
    TQ_INLINE void read(const uint8_t* codes, const uint8_t*, Part part, Bytes (&bytes)[Halves]) const {
      if (part == 64 * Halves) {
        std::memcpy(bytes, codes, sizeof bytes);
        return;
      }
      std::memset(bytes, 0, sizeof bytes);
      std::memcpy(bytes, codes, static_cast<size_t>(part));
    }
  };
};

}  // namespace
}  // namespace tq
