// Four groups at a time with the compiler's generic vectors: runs everywhere, and shows what an instruction set provides.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "floats.h"

namespace tq {
namespace {

struct Portable {
  static constexpr int kLanes = 4;
  static constexpr int kRadix = 8;  // rows of butterflies that fit the registers
  static constexpr bool kFused = false;
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));
  typedef int16_t Pairs __attribute__((vector_size(16)));
  using Mask = I;
  using PairMask = I;
  using Table = const float*;

  static F load(const float* from) { F value; std::memcpy(&value, from, sizeof value); return value; }
  static void store(float* to, F value) { std::memcpy(to, &value, sizeof value); }
  static I load(const int32_t* from) { I value; std::memcpy(&value, from, sizeof value); return value; }
  static void store(int32_t* to, I value) { std::memcpy(to, &value, sizeof value); }
  static F all(float value) { return F{value, value, value, value}; }
  static I all(int32_t value) { return I{value, value, value, value}; }

  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F sqrt(F a) { return F{std::sqrt(a[0]), std::sqrt(a[1]), std::sqrt(a[2]), std::sqrt(a[3])}; }

  static Mask greater(F a, F b) { return a > b; }
  static F select(Mask where, F yes, F no) { return (F)((where & (I)yes) | (~where & (I)no)); }
  static I add_where(Mask where, I k, int32_t step) { return k + (where & step); }
  static Table table(const float* entries) { return entries; }
  static F look_up(Table table, I k) {
    return F{table[k[0] & 15], table[k[1] & 15], table[k[2] & 15], table[k[3] & 15]};
  }

  template <int Count>
  static I left(I a) { return a << Count; }
  template <int Count>
  static I right(I a) { return (I)((U)a >> Count); }
  static F as_floats(I a) { return (F)a; }
  static I as_integers(F a) { return (I)a; }
  static I either(I a, I b) { return a | b; }
  static I both(I a, I b) { return a & b; }
  static I differ(I a, I b) { return a ^ b; }

  // Memory that is not aligned; the first `width` words only.
  static I load_from(const uint8_t* from) { I value; std::memcpy(&value, from, sizeof value); return value; }
  static void store_to(uint8_t* to, I value) { std::memcpy(to, &value, sizeof value); }
  static I load_some(const uint8_t* from, int width) {
    I value = {};
    std::memcpy(&value, from, static_cast<size_t>(width) * sizeof(int32_t));
    return value;
  }
  static void store_some(uint8_t* to, I value, int width) {
    std::memcpy(to, &value, static_cast<size_t>(width) * sizeof(int32_t));
  }

  // Word j of vector i becomes word i of vector j.
  static void transpose(I (&row)[kLanes]) {
    const I a = row[0], b = row[1], c = row[2], d = row[3];
    row[0] = I{a[0], b[0], c[0], d[0]};
    row[1] = I{a[1], b[1], c[1], d[1]};
    row[2] = I{a[2], b[2], c[2], d[2]};
    row[3] = I{a[3], b[3], c[3], d[3]};
  }

  // Magnitudes matter to the short division only, which needs fused multiply-adds.
  static I least_nonzero(I least, I) { return least; }
  static I least_nonzero_pair(I least, I) { return least; }
  static bool none_below(I, float) { return false; }
  static bool no_pair_below(I, float) { return false; }

  static F from_half(I a) {
    return F{half_to_float(static_cast<uint16_t>(a[0])), half_to_float(static_cast<uint16_t>(a[1])),
             half_to_float(static_cast<uint16_t>(a[2])), half_to_float(static_cast<uint16_t>(a[3]))};
  }
  static I to_halves(F low, F high) {
    I pair;
    for (int i = 0; i < kLanes; ++i) pair[i] = float_to_half(low[i]) | float_to_half(high[i]) << 16;
    return pair;
  }
  static I to_bfloats(F low, F high) {
    I pair;
    for (int i = 0; i < kLanes; ++i) pair[i] = float_to_bfloat(low[i]) | float_to_bfloat(high[i]) << 16;
    return pair;
  }

  // Integers for the scale search: 32-bit lanes, or each lane as a pair of 16-bit numbers.
  static I round(F a) {
    return I{static_cast<int32_t>(std::lrint(a[0])), static_cast<int32_t>(std::lrint(a[1])),
             static_cast<int32_t>(std::lrint(a[2])), static_cast<int32_t>(std::lrint(a[3]))};
  }
  static I sum(I a, I b) { return a + b; }
  static I absolute(I a) { return a < 0 ? -a : a; }
  static I positive(I a) { return (a > 0) & 1; }
  static PairMask pairs_greater(I a, I b) { return (I)((Pairs)a > (Pairs)b); }
  static I pairs_select(PairMask where, I yes, I no) { return (where & yes) | (~where & no); }
  static I pairs_dot(I a, I b) {
    return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
  }
};

}  // namespace
}  // namespace tq
