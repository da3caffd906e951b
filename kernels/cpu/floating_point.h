// The floating-point mode of a thread: a caller may have set it to flush denormals or to round another way, and a new
// thread inherits that. The kernels need the default.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace tq {
namespace {

#if defined(__x86_64__)
inline uint64_t floating_point_mode() { return _mm_getcsr(); }
inline void set_floating_point_mode(uint64_t mode) { _mm_setcsr(static_cast<uint32_t>(mode)); }
constexpr uint64_t kDefaultMode = 0x1F80;
#elif defined(__aarch64__)
inline uint64_t floating_point_mode() {
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
inline void set_floating_point_mode(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
constexpr uint64_t kDefaultMode = 0;
#else
inline uint64_t floating_point_mode() { return 0; }
inline void set_floating_point_mode(uint64_t) {}
constexpr uint64_t kDefaultMode = 0;
#endif

class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() : saved_(floating_point_mode()) { set_floating_point_mode(kDefaultMode); }
  ~DefaultFloatingPoint() { set_floating_point_mode(saved_); }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

 private:
  uint64_t saved_;
};

}  // namespace
}  // namespace tq
