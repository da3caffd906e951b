// The C interface of the float8 kernels: checks what it is given, picks the instruction set.
#include "float8_interface.h"
#include "floating_point.h"

namespace tq {
namespace {

bool valid(int32_t dtype, const Float8Shape& shape) {
  return dtype >= TQ_BF16 && dtype <= TQ_F32 && shape.rows >= 0 && shape.columns > 0 && shape.block_rows > 0 &&
         shape.block_columns > 0;
}

}  // namespace
}  // namespace tq

int32_t tq_float8_encode(int32_t instruction_set, int32_t dtype, int32_t division, int64_t block_rows,
                         int64_t block_columns, const void* weight, int64_t rows, int64_t columns, uint8_t* codes,
                         void* scales, int64_t* bad_row) {
  const tq::Float8Shape shape{rows, columns, block_rows, block_columns};
  if (!tq::valid(dtype, shape) || bad_row == nullptr) return TQ_BAD_ARGUMENT;
  if (division != TQ_DIVIDE_FLOAT32 && division != TQ_DIVIDE_WEIGHT) return TQ_BAD_ARGUMENT;
  if (rows > 0 && (weight == nullptr || codes == nullptr || scales == nullptr)) return TQ_BAD_ARGUMENT;
  const tq::Float8Kernels* kernels = TQ_CHOOSE(kFloat8, instruction_set);
  if (kernels == nullptr) return TQ_UNAVAILABLE;
  const tq::DefaultFloatingPoint mode;
  const tq::Float8Encode job{shape, static_cast<const uint8_t*>(weight), codes, static_cast<uint8_t*>(scales)};
  const int64_t bad = kernels->encode[dtype][division](job);
  if (bad < 0) return TQ_OK;
  *bad_row = bad;
  return TQ_NON_FINITE;
}

int32_t tq_float8_decode(int32_t instruction_set, int32_t dtype, int64_t block_rows, int64_t block_columns,
                         const uint8_t* codes, const void* scales, int64_t rows, int64_t columns, float* weight) {
  const tq::Float8Shape shape{rows, columns, block_rows, block_columns};
  if (!tq::valid(dtype, shape)) return TQ_BAD_ARGUMENT;
  if (rows > 0 && (codes == nullptr || scales == nullptr || weight == nullptr)) return TQ_BAD_ARGUMENT;
  const tq::Float8Kernels* kernels = TQ_CHOOSE(kFloat8, instruction_set);
  if (kernels == nullptr) return TQ_UNAVAILABLE;
  const tq::DefaultFloatingPoint mode;
  kernels->decode[dtype]({shape, codes, static_cast<const uint8_t*>(scales), weight});
  return TQ_OK;
}
