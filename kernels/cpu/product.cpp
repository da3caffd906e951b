// The C interface of products: checks every argument, prepares the activations, shares rows between threads.
#include "product.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "floating_point.h"
#include "product_layout.h"
#include "product_threads.h"

namespace tq {
namespace {

constexpr std::size_t kAligned = 64;
constexpr int64_t kWorthThread = 1 << 18;  // bytes of codes for which another thread pays
constexpr int64_t kPiece = 1 << 16;        // bytes of codes that a thread takes at a time
constexpr int64_t kRowsTogether = 32;      // a multiple of the rows of every innermost loop
constexpr int64_t kAllTokens = INT64_MAX;

bool valid(const TqProductFormat& format) {
  if (format.codes < TQ_CODES_TRELLIS || format.codes > TQ_CODES_BYTES) return false;
  if (format.scales < TQ_SCALES_TRELLIS || format.scales > TQ_SCALES_F16) return false;
  if (format.tail < TQ_TAIL_SMALLER || format.tail > TQ_TAIL_SHORT) return false;
  if (format.group_size != 128 && format.group_size != 64 && format.group_size != 32) return false;
  if (format.codes == TQ_CODES_BYTES) return format.bits == 8 && format.scales != TQ_SCALES_TRELLIS;
  if (format.bits < 2 || format.bits > 4 || format.table == nullptr) return false;
  if (format.codes == TQ_CODES_TABLE) return format.scales != TQ_SCALES_TRELLIS;
  return format.scales == TQ_SCALES_TRELLIS && format.tail == TQ_TAIL_SMALLER && format.group_size == 128;
}

bool valid(const TqProductFormat& format, int64_t columns) {
  if (columns < 1 || columns > INT32_MAX) return false;
  if (format.tail == TQ_TAIL_SMALLER) return format.group_size == 128 && columns % 16 == 0;
  return format.tail == TQ_TAIL_PADDED || !format.rotated || columns % format.group_size == 0;
}

// Whether the pairs name matrices and tokens that are there.
bool valid(const int64_t* numbers, int64_t pairs, int64_t all) {
  if (numbers == nullptr) return true;
  return std::all_of(numbers, numbers + pairs, [&](int64_t number) { return number >= 0 && number < all; });
}

// Whether the processor has the extensions of the set, and there are any.
bool has_extensions(int32_t set) {
#if defined(__x86_64__)
  return TQ_CHOOSE(kProduct, set) == &kProduct_avx512 && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vnni");
#else
  (void)set;
  return false;
#endif
}

const ProductKernels* kernels_for(int32_t set, int32_t extensions) {
#if defined(__x86_64__)
  if (extensions && has_extensions(set)) return &kProductBytes_avx512;
#else
  (void)extensions;
#endif
  return TQ_CHOOSE(kProduct, set);
}

std::size_t rounded(int64_t bytes) { return (static_cast<std::size_t>(bytes) + kAligned) / kAligned * kAligned; }

// Aligned memory that frees itself.
class ProductMemory {
 public:
  explicit ProductMemory(std::size_t bytes) : at(static_cast<uint8_t*>(std::aligned_alloc(kAligned, bytes))) {}
  ~ProductMemory() { std::free(at); }
  ProductMemory(const ProductMemory&) = delete;
  ProductMemory& operator=(const ProductMemory&) = delete;

  uint8_t* const at;
};

// What all prepared tokens take: values, corrections, scales, totals.
std::size_t prepared_bytes(const ProductRows& rows, int64_t tokens, int32_t planes) {
  return rounded(tokens * rows.slots * planes) + rounded(tokens * rows.groups * kProductLanes * 4) +
         2 * rounded(tokens * rows.groups * 4);
}

Prepared prepared_at(uint8_t* memory, const ProductRows& rows, int64_t tokens, int32_t planes) {
  uint8_t* const lanes = memory + rounded(tokens * rows.slots * planes);
  uint8_t* const scales = lanes + rounded(tokens * rows.groups * kProductLanes * 4);
  uint8_t* const totals = scales + rounded(tokens * rows.groups * 4);
  return {reinterpret_cast<int8_t*>(memory), reinterpret_cast<int32_t*>(lanes), reinterpret_cast<float*>(scales),
          reinterpret_cast<int32_t*>(totals)};
}

// Neighbouring pairs of the same matrix, `most` at most, become one batch. tokens: not nullptr.
std::vector<ProductBatch> batches_of(const ProductJob& job, const int64_t* matrices, const int64_t* tokens,
                                     int64_t pairs, uint8_t* results, int64_t most) {
  std::vector<ProductBatch> batches;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t matrix = matrices == nullptr ? 0 : matrices[pair];
    if (batches.empty() || batches.back().matrix != matrix || batches.back().tokens == most) {
      batches.push_back({matrix, 0, tokens + pair, results + pair * job.result_bytes()});
    }
    ++batches.back().tokens;
  }
  return batches;
}

// How the rows of all batches are cut.
struct Cut {
  int64_t rows;     // of a piece
  int64_t pieces;   // of a batch
  int64_t all;      // pieces
  int64_t threads;  // that pay

  Cut(const ProductRows& layout, int64_t all_rows, int64_t batches, int64_t most_threads) {
    const int64_t row_bytes = layout.code_bytes + layout.scale_bytes;
    const int64_t wanted = std::max<int64_t>(1, kPiece / row_bytes);
    rows = std::min(wanted, all_rows);
    rows = (rows + kRowsTogether - 1) / kRowsTogether * kRowsTogether;
    pieces = (all_rows + rows - 1) / rows;
    all = pieces * batches;
    threads = std::max<int64_t>(1, std::min({most_threads, all, batches * all_rows * row_bytes / kWorthThread}));
  }
};

int32_t run_batches(Multiply multiply, const ProductJob& job, const std::vector<ProductBatch>& batches,
                    int32_t threads) {
  const Cut cut(job.rows, job.all_rows, static_cast<int64_t>(batches.size()), threads);
  const std::size_t each = rounded(memory_bytes(job.rows, cut.rows));
  const ProductMemory memory(each * static_cast<std::size_t>(cut.threads));
  if (memory.at == nullptr) return TQ_UNAVAILABLE;
  const auto run = [&](int64_t piece, int64_t thread) {
    const int64_t first = piece % cut.pieces * cut.rows;
    multiply(job, batches[static_cast<std::size_t>(piece / cut.pieces)], first,
             std::min(first + cut.rows, job.all_rows), memory.at + each * static_cast<std::size_t>(thread));
  };
  using Run = decltype(run);
  share_work({[](const void* work, int64_t piece, int64_t thread) { (*static_cast<const Run*>(work))(piece, thread); },
              &run, cut.all},
             cut.threads);
  return TQ_OK;
}

}  // namespace
}  // namespace tq

int32_t tq_product(const TqProductFormat* format, int32_t instruction_set, int32_t extensions, int32_t dtype,
                   int32_t planes, int32_t by_groups, const void* codes, const void* scales, int64_t all_matrices, int64_t rows, int64_t columns,
                   const void* activations, int64_t all_tokens, const int64_t* matrices, const int64_t* tokens,
                   int64_t pairs, void* results, int32_t threads) {
  if (format == nullptr || !tq::valid(*format) || !tq::valid(*format, columns)) return TQ_BAD_ARGUMENT;
  if ((dtype != TQ_BF16 && dtype != TQ_F32) || threads < 1) return TQ_BAD_ARGUMENT;
  if (planes != 1 && planes != 2) return TQ_BAD_ARGUMENT;
  if (all_matrices < 0 || rows < 0 || all_tokens < 0 || pairs < 0) return TQ_BAD_ARGUMENT;
  if (rows == 0 || pairs == 0) return TQ_OK;
  if (codes == nullptr || scales == nullptr || activations == nullptr || results == nullptr) return TQ_BAD_ARGUMENT;
  if (all_matrices < 1 || (tokens == nullptr && pairs > all_tokens)) return TQ_BAD_ARGUMENT;
  if (!tq::valid(matrices, pairs, all_matrices) || !tq::valid(tokens, pairs, all_tokens)) return TQ_BAD_ARGUMENT;
  const tq::ProductKernels* kernels = tq::kernels_for(instruction_set, extensions);
  if (kernels == nullptr) return TQ_UNAVAILABLE;
  const tq::ProductRows layout = tq::rows_of(*format, columns);
  const tq::ProductMemory memory(tq::prepared_bytes(layout, all_tokens, planes));
  if (memory.at == nullptr) return TQ_UNAVAILABLE;
  const tq::ProductJob job{format, layout, static_cast<TqDtype>(dtype), planes,
                           static_cast<const uint8_t*>(codes), static_cast<const uint8_t*>(scales),
                           static_cast<const uint8_t*>(activations),
                           tq::prepared_at(memory.at, layout, all_tokens, planes), rows};
  const tq::DefaultFloatingPoint mode;
  kernels->prepare(job, 0, all_tokens);
  std::vector<int64_t> in_order;
  if (tokens == nullptr) {
    in_order.resize(static_cast<std::size_t>(pairs));
    std::iota(in_order.begin(), in_order.end(), 0);
    tokens = in_order.data();
  }
  const auto batches = tq::batches_of(job, matrices, tokens, pairs, static_cast<uint8_t*>(results),
                                      by_groups ? tq::kAllTokens : tq::kMostTokens);
  return tq::run_batches(by_groups ? kernels->by_groups : kernels->by_lanes, job, batches, threads);
}

int32_t tq_product_groups_are_fast(int32_t instruction_set) { return tq::has_extensions(instruction_set) ? 1 : 0; }
