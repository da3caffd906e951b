// Checks the arguments, picks the instruction set, shares the groups between threads.
#include "tq_cpu.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "constants.h"
#include "dispatch.h"
#include "floating_point.h"
#include "kernels.h"

namespace tq {
namespace {

constexpr int64_t kGrain = 64;  // groups; a multiple of every instruction set's batch

const Kernels* kernels_for(int32_t instruction_set) {
  if (!machine_has(instruction_set)) return nullptr;
#if defined(__x86_64__)
  if (instruction_set == TQ_AVX2) return &kAvx2;
  if (instruction_set == TQ_AVX512) return &kAvx512;
#elif defined(__aarch64__)
  if (instruction_set == TQ_NEON) return &kNeon;
#endif
  return &kPortable;
}

bool valid(const TqTables* tables, int32_t dtype, int64_t rows, int64_t columns, int32_t threads) {
  if (tables == nullptr || tables->bits < 2 || tables->bits > kMaxBits || tables->candidates < 1) return false;
  const int32_t size = tables->group_size;
  if (size != 32 && size != 64 && size != 128 && size != 256) return false;
  return dtype >= TQ_BF16 && dtype <= TQ_F32 && rows >= 0 && columns >= 1 && threads >= 1;
}

int64_t value_bytes(int32_t dtype) { return dtype == TQ_F32 ? 4 : 2; }

Constants constants_of(const TqTables& tables) {
  const DefaultFloatingPoint mode;
  return make_constants(tables);
}

// Runs work(first, last) over [0, count) on up to `threads` threads; each gets one run of whole grains.
template <class Work>
void share(int64_t count, int32_t threads, Work work) {
  const int64_t grains = (count + kGrain - 1) / kGrain;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, grains));
  const auto bound = [&](int64_t part) { return std::min(count, grains * part / parts * kGrain); };
  const auto run = [&](int64_t first, int64_t last) {
    const DefaultFloatingPoint mode;
    work(first, last);
  };
  std::vector<std::thread> pool;
  int64_t part = 1;
  try {
    pool.reserve(static_cast<size_t>(parts));
    for (; part < parts; ++part) pool.emplace_back(run, bound(part), bound(part + 1));
  } catch (const std::system_error&) {
    // No further thread to be had: this one does the rest.
  }
  run(0, bound(1));
  if (part < parts) run(bound(part), count);
  for (std::thread& thread : pool) thread.join();
}

}  // namespace
}  // namespace tq

int32_t tq_interface() { return 6; }

int32_t tq_has(int32_t instruction_set) { return tq::machine_has(instruction_set); }

int32_t tq_encode(const TqTables* tables, int32_t instruction_set, int32_t dtype, int32_t scale, const void* weight,
                  int64_t rows, int64_t columns, uint8_t* codes, float* norms, int32_t threads, int64_t* bad_row) {
  if (!tq::valid(tables, dtype, rows, columns, threads) || bad_row == nullptr) return TQ_BAD_ARGUMENT;
  if (scale != TQ_SCALE_NORM && scale != TQ_SCALE_SEARCH) return TQ_BAD_ARGUMENT;
  const tq::Kernels* kernels = tq::kernels_for(instruction_set);
  if (kernels == nullptr) return TQ_UNAVAILABLE;
  const tq::Constants constants = tq::constants_of(*tables);
  const int64_t groups = (columns + tables->group_size - 1) / tables->group_size;
  const tq::Encode job{&constants, static_cast<TqDtype>(dtype), static_cast<TqScale>(scale),
                       {columns, groups, tq::value_bytes(dtype)}, static_cast<const uint8_t*>(weight), codes, norms};
  std::atomic<int64_t> bad{INT64_MAX};
  tq::share(rows * groups, threads, [&](int64_t first, int64_t last) {
    const int64_t found = kernels->encode(job, first, last);
    int64_t known = bad.load();
    while (found >= 0 && found < known && !bad.compare_exchange_weak(known, found)) {
    }
  });
  if (bad.load() == INT64_MAX) return TQ_OK;
  *bad_row = bad.load() / groups;
  return TQ_NON_FINITE;
}

int32_t tq_decode(const TqTables* tables, int32_t instruction_set, int32_t dtype, const uint8_t* codes,
                  const float* norms, int64_t rows, int64_t columns, void* weight, int32_t threads) {
  if (!tq::valid(tables, dtype, rows, columns, threads)) return TQ_BAD_ARGUMENT;
  const tq::Kernels* kernels = tq::kernels_for(instruction_set);
  if (kernels == nullptr) return TQ_UNAVAILABLE;
  const tq::Constants constants = tq::constants_of(*tables);
  const int64_t groups = (columns + tables->group_size - 1) / tables->group_size;
  const tq::Decode job{&constants, static_cast<TqDtype>(dtype), {columns, groups, tq::value_bytes(dtype)},
                       codes, norms, static_cast<uint8_t*>(weight)};
  tq::share(rows * groups, threads, [&](int64_t first, int64_t last) { kernels->decode(job, first, last); });
  return TQ_OK;
}
