// The C interface of HLWQ: checks what comes in and picks the instruction set.
#include "floating_point.h"
#include "hlwq.h"

namespace tq {
namespace {

bool valid_bits(int32_t bits) { return (bits >= 2 && bits <= 6) || bits == 8; }
bool valid_size(int64_t rows, int64_t columns) { return rows >= 0 && columns > 0; }
int64_t value_bytes(int32_t dtype) { return dtype == TQ_F32 ? 4 : 2; }

Shape shape_of(int64_t columns, int64_t bytes) {
  return {columns, (columns + kHlwqBlock - 1) / kHlwqBlock, bytes};
}

}  // namespace
}  // namespace tq

// weight: rows x columns of dtype; midpoints: 2^bits - 1; packed: rows * blocks * 16 * bits bytes; norms: rows * blocks
// halves. bad_row: the first row with a norm that fits no half where the status is TQ_NON_FINITE.
TQ_EXPORT int32_t tq_hlwq_encode(int32_t instruction_set, int32_t dtype, int32_t bits, const float* midpoints,
                                 const void* weight, int64_t rows, int64_t columns, uint8_t* packed, void* norms,
                                 int64_t* bad_row) {
  if (!tq::valid_bits(bits) || !tq::valid_size(rows, columns)) return TQ_BAD_ARGUMENT;
  if (dtype != TQ_BF16 && dtype != TQ_F16 && dtype != TQ_F32) return TQ_BAD_ARGUMENT;
  if (!midpoints || !weight || !packed || !norms || !bad_row) return TQ_BAD_ARGUMENT;
  const tq::HlwqKernels* kernels = TQ_CHOOSE(kHlwq, instruction_set);
  if (kernels == nullptr) return TQ_UNAVAILABLE;
  const tq::DefaultFloatingPoint mode;
  const tq::Shape shape = tq::shape_of(columns, tq::value_bytes(dtype));
  const tq::HlwqEncode job{static_cast<TqDtype>(dtype), shape, midpoints, static_cast<const uint8_t*>(weight),
                           packed, static_cast<uint8_t*>(norms)};
  const int64_t found = kernels->encode(bits, job, 0, rows * shape.groups);
  if (found < 0) return TQ_OK;
  *bad_row = found / shape.groups;
  return TQ_NON_FINITE;
}

// levels: 2^bits; the other arrays as above, weight as floats.
TQ_EXPORT int32_t tq_hlwq_decode(int32_t instruction_set, int32_t bits, const float* levels, const uint8_t* packed,
                                 const void* norms, int64_t rows, int64_t columns, void* weight) {
  if (!tq::valid_bits(bits) || !tq::valid_size(rows, columns)) return TQ_BAD_ARGUMENT;
  if (!levels || !packed || !norms || !weight) return TQ_BAD_ARGUMENT;
  const tq::HlwqKernels* kernels = TQ_CHOOSE(kHlwq, instruction_set);
  if (kernels == nullptr) return TQ_UNAVAILABLE;
  const tq::DefaultFloatingPoint mode;
  const tq::HlwqDecode job{tq::shape_of(columns, sizeof(float)), levels, packed, static_cast<const uint8_t*>(norms),
                           static_cast<uint8_t*>(weight)};
  kernels->decode(bits, job, 0, rows * job.shape.groups);
  return TQ_OK;
}
