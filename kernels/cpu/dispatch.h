// One kernel family for every instruction set: how its copies are named, and how the one to run is picked.
//
// A family `x` is x.h (the loops), x_kernels.cpp (compiled once for each instruction set, see build_library.py) and
// x.cpp (its C interface). Left out: threads; callers split rows among theirs.
#pragma once

#include "tq_cpu.h"

#define TQ_PASTE_(name, set) name##_##set
#define TQ_PASTE(name, set) TQ_PASTE_(name, set)

// In x_kernels.cpp: the name of this instruction set's table of functions.
#define TQ_OF_SET(name) TQ_PASTE(name, TQ_SET)

// In x.h: declares the tables. In x.cpp: the table of an instruction set, nullptr where this machine lacks it.
#if defined(__x86_64__)
#define TQ_DECLARE_SETS(type, name) extern const type name##_portable, name##_avx2, name##_avx512
#define TQ_CHOOSE(name, set)                                                \
  (!tq::machine_has(set) ? nullptr                                          \
                         : (set) == TQ_AVX512 ? &tq::name##_avx512          \
                                              : (set) == TQ_AVX2 ? &tq::name##_avx2 : &tq::name##_portable)
#elif defined(__aarch64__)
#define TQ_DECLARE_SETS(type, name) extern const type name##_portable, name##_neon
#define TQ_CHOOSE(name, set) \
  (!tq::machine_has(set) ? nullptr : (set) == TQ_NEON ? &tq::name##_neon : &tq::name##_portable)
#else
#define TQ_DECLARE_SETS(type, name) extern const type name##_portable
#define TQ_CHOOSE(name, set) (!tq::machine_has(set) ? nullptr : &tq::name##_portable)
#endif

namespace tq {

// Whether this processor runs a TqInstructionSet that this build has.
bool machine_has(int32_t instruction_set);

}  // namespace tq
