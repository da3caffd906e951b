// The C interface of the native kernels, as tq_kernels/library.py declares it. No torch, no Python.
#pragma once

#include <cstdint>

#define TQ_EXPORT extern "C" __attribute__((visibility("default")))

enum TqStatus : int32_t { TQ_OK = 0, TQ_NON_FINITE = 1, TQ_BAD_ARGUMENT = 2, TQ_UNAVAILABLE = 3 };
enum TqInstructionSet : int32_t { TQ_PORTABLE = 0, TQ_AVX2 = 1, TQ_AVX512 = 2, TQ_NEON = 3 };
enum TqDtype : int32_t { TQ_BF16 = 0, TQ_F16 = 1, TQ_F32 = 2 };
enum TqScale : int32_t { TQ_SCALE_NORM = 0, TQ_SCALE_SEARCH = 1 };

// The arrays are those of tq_kernels.types.TqTables.
struct TqTables {
  int32_t bits;
  int32_t group_size;
  int32_t candidates;
  int32_t reserved;
  const float* signs_in;
  const float* signs_out;
  const float* centroids;
  const float* boundaries;
  const int16_t* search_boundaries;
  const int16_t* search_centroids;
};

TQ_EXPORT int32_t tq_interface();
TQ_EXPORT int32_t tq_has(int32_t instruction_set);

// weight: rows x columns of dtype; codes: rows * groups * bytes per group; norms: rows * groups.
// bad_row: the first row with a non-finite group where the status is TQ_NON_FINITE.
TQ_EXPORT int32_t tq_encode(const TqTables* tables, int32_t instruction_set, int32_t dtype, int32_t scale,
                            const void* weight, int64_t rows, int64_t columns, uint8_t* codes, float* norms,
                            int32_t threads, int64_t* bad_row);

TQ_EXPORT int32_t tq_decode(const TqTables* tables, int32_t instruction_set, int32_t dtype, const uint8_t* codes,
                            const float* norms, int64_t rows, int64_t columns, void* weight, int32_t threads);

// Index of the first NaN or Inf, -1 where there is none.
TQ_EXPORT int64_t tq_first_non_finite(int32_t dtype, const void* values, int64_t count);
