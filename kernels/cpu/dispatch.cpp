// What this processor can run.
#include "dispatch.h"

namespace tq {

bool machine_has(int32_t instruction_set) {
  if (instruction_set == TQ_PORTABLE) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (instruction_set == TQ_AVX2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }
  if (instruction_set == TQ_AVX512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#elif defined(__aarch64__)
  if (instruction_set == TQ_NEON) return true;
#endif
  return false;
}

}  // namespace tq
