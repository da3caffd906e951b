// Four groups at a time with the compiler's generic vectors: runs everywhere, and shows what an instruction set provides.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace tq {
namespace {

struct Portable {
  static constexpr int kLanes = 4;
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
  static I either(I a, I b) { return a | b; }
  static I both(I a, I b) { return a & b; }
  static I differ(I a, I b) { return a ^ b; }

  // Integers for the scale search: 32-bit lanes, or each lane as a pair of 16-bit numbers.
  static I round(F a) {
    return I{static_cast<int32_t>(std::lrint(a[0])), static_cast<int32_t>(std::lrint(a[1])),
             static_cast<int32_t>(std::lrint(a[2])), static_cast<int32_t>(std::lrint(a[3]))};
  }
  static I sum(I a, I b) { return a + b; }
  static I absolute(I a) { return a < 0 ? -a : a; }
  static I positive(I a) { return a > 0; }
  static PairMask pairs_greater(I a, I b) { return (I)((Pairs)a > (Pairs)b); }
  static I pairs_select(PairMask where, I yes, I no) { return (where & yes) | (~where & no); }
  static I pairs_dot(I a, I b) {
    return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
  }
};

}  // namespace
}  // namespace tq
