// What the dispatcher hands to one instruction set's kernels: a run of groups of one matrix.
#pragma once

#include "tq_cpu.h"

namespace tq {

constexpr int kMaxBits = 4;
constexpr int kLevels = 1 << kMaxBits;
constexpr int kMaxGroup = 256;

// Constants derived once a call from TqTables, ready for table look-ups of sixteen entries.
struct Constants {
  TqTables tables;
  // thresholds[s][k]: the boundary that decides whether index k grows by 2^s, moved before the division by the root.
  float thresholds[kMaxBits][kLevels];
  // levels[0]: the centroids, repeated; levels[1]: their negatives.
  alignas(64) float levels[2][kLevels];
  int32_t negative_in[kMaxGroup];   // 1 where signs_in is -1
  int32_t negative_out[kMaxGroup];  // 1 where signs_out is -1
  float root;          // square root of the group size
  float inverse_high;  // 1 / root in two parts: x * inverse_high + x * inverse_low rounds as x / root does
  float inverse_low;
};

// A matrix whose rows are cut into groups; the last one of a row may be short.
struct Shape {
  int64_t columns;
  int64_t groups;  // in a row
  int64_t value_bytes;
};

struct Encode {
  const Constants* constants;
  TqDtype dtype;
  TqScale scale;
  Shape shape;
  const uint8_t* weight;
  uint8_t* codes;
  float* norms;
};

struct Decode {
  const Constants* constants;
  TqDtype dtype;
  Shape shape;
  const uint8_t* codes;
  const float* norms;
  uint8_t* weight;
};

// encode returns the first group that is not finite, or -1.
struct Kernels {
  int64_t (*encode)(const Encode& job, int64_t first, int64_t last);
  void (*decode)(const Decode& job, int64_t first, int64_t last);
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#elif defined(__aarch64__)
extern const Kernels kNeon;
#endif

}  // namespace tq
