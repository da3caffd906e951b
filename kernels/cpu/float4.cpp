// The C interface of the FP4 kernels: checks what it is given, picks the instruction set.
#include "float4_interface.h"
#include "floating_point.h"

namespace tq {
namespace {

int64_t group_of(int32_t kind) { return kind == TQ_FLOAT4_MX ? 32 : 16; }

bool valid(int32_t kind, float global_scale, int64_t rows, int64_t columns) {
  if (kind != TQ_FLOAT4_MX && kind != TQ_FLOAT4_NV) return false;
  const bool scaled = global_scale > 0.0f && global_scale <= 0x1.fffffep127f;
  return rows >= 0 && columns > 0 && columns % group_of(kind) == 0 && (kind == TQ_FLOAT4_MX || scaled);
}

}  // namespace
}  // namespace tq

int32_t tq_float4_encode(int32_t instruction_set, int32_t dtype, int32_t kind, float global_scale, const void* weight,
                         int64_t rows, int64_t columns, uint8_t* codes, uint8_t* scales, int64_t* bad_row) {
  if (!tq::valid(kind, global_scale, rows, columns) || bad_row == nullptr) return TQ_BAD_ARGUMENT;
  if (dtype < TQ_BF16 || dtype > TQ_F32) return TQ_BAD_ARGUMENT;
  if (rows > 0 && (weight == nullptr || codes == nullptr || scales == nullptr)) return TQ_BAD_ARGUMENT;
  const tq::Float4Kernels* kernels = TQ_CHOOSE(kFloat4, instruction_set);
  if (kernels == nullptr) return TQ_UNAVAILABLE;
  const tq::DefaultFloatingPoint mode;
  const int64_t per_row = columns / tq::group_of(kind);
  const int64_t bad = kernels->encode[dtype][kind](
      {rows * per_row, global_scale, static_cast<const uint8_t*>(weight), codes, scales});
  if (bad < 0) return TQ_OK;
  *bad_row = bad / per_row;
  return TQ_NON_FINITE;
}

int32_t tq_float4_decode(int32_t instruction_set, int32_t kind, float global_scale, const uint8_t* codes,
                         const uint8_t* scales, int64_t rows, int64_t columns, float* weight) {
  if (!tq::valid(kind, global_scale, rows, columns)) return TQ_BAD_ARGUMENT;
  if (rows > 0 && (codes == nullptr || scales == nullptr || weight == nullptr)) return TQ_BAD_ARGUMENT;
  const tq::Float4Kernels* kernels = TQ_CHOOSE(kFloat4, instruction_set);
  if (kernels == nullptr) return TQ_UNAVAILABLE;
  const tq::DefaultFloatingPoint mode;
  kernels->decode[kind]({rows * (columns / tq::group_of(kind)), global_scale, codes, scales, weight});
  return TQ_OK;
}
