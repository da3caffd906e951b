// Groups side by side: lane i of every vector belongs to group i, so that no sum crosses lanes and the width of the
// vectors changes no bit of the result. The compiler's generic vectors take the width of the instruction set.
#pragma once

#include <cstdint>

namespace tq {
namespace {

#if defined(__AVX512F__)
constexpr int kLaneBytes = 64;
#elif defined(__AVX2__)
constexpr int kLaneBytes = 32;
#else
constexpr int kLaneBytes = 16;
#endif
constexpr int kLanes = kLaneBytes / 4;

typedef float Floats __attribute__((vector_size(kLaneBytes)));
typedef int32_t Integers __attribute__((vector_size(kLaneBytes)));
typedef uint32_t Words __attribute__((vector_size(kLaneBytes)));

inline Floats all(float value) { return Floats{} + value; }
inline Floats least(Floats a, Floats b) { return a < b ? a : b; }
inline Floats most(Floats a, Floats b) { return a > b ? a : b; }

}  // namespace
}  // namespace tq
