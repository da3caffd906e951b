// Storage types of the trellis kernels: a vector of values from and to memory, denormals kept.
#pragma once

#include "trellis_lanes.h"

namespace tq {
namespace {

struct TrellisBfloat {
  static constexpr int kBytes = 2;
  static TQ_INLINE Floats load(const uint8_t* from) {
    return (Floats)(widened(read<HalfWords>(from)) << 16);
  }
  static TQ_INLINE void store(uint8_t* to, Floats value) {
    const Words bits = (Words)value;
    write(to, narrowed((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16));
  }
};

struct TrellisHalf {
  static constexpr int kBytes = 2;
  // As half_to_float and float_to_half of floats.h.
  static TQ_INLINE Floats load(const uint8_t* from) {
    const Words half = widened(read<HalfWords>(from));
    const Floats moved = (Floats)((half & 0x7FFFu) << 13) * 0x1p112f;
    const Words infinite = (Words)((half & 0x7C00u) == 0x7C00u) & 0x7F800000u;
    return (Floats)((Words)moved | infinite | (half & 0x8000u) << 16);
  }
  static TQ_INLINE void store(uint8_t* to, Floats value) {
    const Words bits = (Words)value, magnitude = bits & 0x7FFFFFFFu;
    const Words small = (Words)((Floats)magnitude + 0.5f) - 0x3F000000u;
    const Words normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    const Words finite = magnitude < 0x38800000u ? small : normal;
    const Words half = magnitude >= 0x477FF000u ? Words{} + 0x7C00u : finite;
    write(to, narrowed(half | ((bits >> 16) & 0x8000u)));
  }
};

struct TrellisSingle {
  static constexpr int kBytes = 4;
  static TQ_INLINE Floats load(const uint8_t* from) { return read<Floats>(from); }
  static TQ_INLINE void store(uint8_t* to, Floats value) { write(to, value); }
};

}  // namespace
}  // namespace tq
