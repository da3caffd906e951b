// Products of packed weights in plain loops, on any processor.
#pragma once

#include <cstdint>
#include <cstring>

#include "product.h"
#include "unroll.h"

namespace tq {
namespace {

// A group's codes behind one byte, with room for whole vectors to be read. Of a short group, of less than Whole bytes,
// zeros lie behind the codes.
template <int Whole>
struct alignas(64) CodeStream {
  uint8_t at[1 + 64 + 63];

  TQ_INLINE CodeStream(uint8_t before, const uint8_t* codes, int64_t bytes) {
    if (bytes == Whole) {
      std::memcpy(at + 1, codes, Whole);
      std::memset(at + 1 + Whole, 0, 16);
    } else {
      std::memset(at, 0, sizeof at);
      std::memcpy(at + 1, codes, static_cast<size_t>(bytes));
    }
    at[0] = before;
  }
};

TQ_INLINE int64_t bytes_of(int64_t size, int bits) { return (size * bits + 7) / 8; }

struct PortableProduct {
  struct Bytes {
    int8_t at[64];
  };
  struct Integers {
    int32_t at[kProductLanes];
  };
  struct Sums {
    float at[kProductLanes];
  };

  template <int Tokens>
  static constexpr int rows() {
    return 1;
  }

  static TQ_INLINE Sums zero() { return {}; }
  static TQ_INLINE Integers none() { return {}; }
  static TQ_INLINE Integers start(const int32_t*) { return {}; }

  // Sums of upper bytes as what they count, and others.
  static TQ_INLINE Integers upper(Integers sum, const Integers& other) {
    for (int lane = 0; lane < kProductLanes; ++lane) sum.at[lane] = kUpperByte * sum.at[lane] + other.at[lane];
    return sum;
  }

  static TQ_INLINE Integers dot(Integers sum, const Bytes& bytes, const int8_t* values) {
    for (int lane = 0; lane < kProductLanes; ++lane) {
      for (int i = 4 * lane; i < 4 * lane + 4; ++i) sum.at[lane] += bytes.at[i] * values[i];
    }
    return sum;
  }

  static TQ_INLINE Sums add(Sums sum, const Integers& dot, float factor) {
    for (int lane = 0; lane < kProductLanes; ++lane) sum.at[lane] += static_cast<float>(dot.at[lane]) * factor;
    return sum;
  }

  static TQ_INLINE float total(Sums sum) {
    for (int apart = kProductLanes / 2; apart > 0; apart /= 2) {
      for (int lane = 0; lane < apart; ++lane) sum.at[lane] += sum.at[lane + apart];
    }
    return sum.at[0];
  }

  // Eight weights of BITS bits begin at a whole byte; SHIFT is where the first one's window begins, MASK its bits.
  template <int BITS, int SHIFT, int MASK, int Halves>
  static TQ_INLINE void look_up(const int8_t* table, const uint8_t* stream, Bytes (&bytes)[Halves]) {
    for (int i = 0; i < 8 * Halves; ++i) {
      uint64_t word;
      std::memcpy(&word, stream + BITS * i, sizeof word);
      for (int j = 0; j < 8; ++j) bytes[i / 8].at[i % 8 * 8 + j] = table[(word >> (SHIFT + BITS * j)) & MASK];
    }
  }

  template <int BITS>
  struct Trellis {
    static constexpr int kBits = BITS;
    using Part = int64_t;
    const int8_t* table;

    explicit Trellis(const TqProductFormat& format) : table(format.table) {}
    static Part part(int64_t size) { return bytes_of(size, BITS); }

    template <int Halves>
    TQ_INLINE void read(const uint8_t* codes, const uint8_t* meta, Part part, Bytes (&bytes)[Halves]) const {
      const CodeStream<8 * BITS * Halves> stream(meta[1], codes, part);
      look_up<BITS, BITS, 255>(table, stream.at, bytes);
    }
  };

  template <int BITS>
  struct Table {
    static constexpr int kBits = BITS;
    using Part = int64_t;
    const int8_t* table;

    explicit Table(const TqProductFormat& format) : table(format.table) {}
    static Part part(int64_t size) { return bytes_of(size, BITS); }

    template <int Halves>
    TQ_INLINE void read(const uint8_t* codes, const uint8_t*, Part part, Bytes (&bytes)[Halves]) const {
      const CodeStream<8 * BITS * Halves> stream(0, codes, part);
      look_up<BITS, 0, (1 << BITS) - 1>(table, stream.at + 1, bytes);
    }
  };

  struct Plain {
    static constexpr int kBits = 8;
    using Part = int64_t;

    explicit Plain(const TqProductFormat&) {}
    static Part part(int64_t size) { return size; }

    template <int Halves>
    TQ_INLINE void read(const uint8_t* codes, const uint8_t*, Part part, Bytes (&bytes)[Halves]) const {
      std::memset(bytes, 0, sizeof bytes);
      std::memcpy(bytes, codes, static_cast<size_t>(part));
    }
  };
};

}  // namespace
}  // namespace tq
