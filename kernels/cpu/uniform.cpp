// The C interface of uniform quantisation: checks what it is given, picks the instruction set.
#include "floating_point.h"
#include "uniform_interface.h"

namespace tq {
namespace {

bool valid(int32_t dtype, int32_t bits, const UniformShape& shape) {
  if (dtype < TQ_BF16 || dtype > TQ_F32 || (bits != 8 && bits != 4)) return false;
  if (shape.group != 32 && shape.group != 64 && shape.group != 128 && shape.group != 256) return false;
  return shape.rows >= 0 && shape.columns > 0;
}

int width_index(int32_t bits) { return bits == 8 ? 0 : 1; }

}  // namespace
}  // namespace tq

int32_t tq_uniform_encode(int32_t instruction_set, int32_t dtype, int32_t bits, int32_t group_size, int32_t scale,
                          const void* weight, int64_t rows, int64_t columns, void* codes, void* scales,
                          int64_t* bad_row) {
  const tq::UniformShape shape{rows, columns, group_size};
  if (!tq::valid(dtype, bits, shape) || bad_row == nullptr) return TQ_BAD_ARGUMENT;
  if (scale != TQ_UNIFORM_ABSMAX && scale != TQ_UNIFORM_SEARCH) return TQ_BAD_ARGUMENT;
  if (rows > 0 && (weight == nullptr || codes == nullptr || scales == nullptr)) return TQ_BAD_ARGUMENT;
  const tq::UniformKernels* kernels = TQ_CHOOSE(kUniform, instruction_set);
  if (kernels == nullptr) return TQ_UNAVAILABLE;
  const tq::DefaultFloatingPoint mode;
  const int64_t bad = kernels->encode[dtype][tq::width_index(bits)][scale](
      {shape, static_cast<const uint8_t*>(weight), static_cast<uint8_t*>(codes), static_cast<uint8_t*>(scales)});
  if (bad < 0) return TQ_OK;
  *bad_row = bad;
  return TQ_NON_FINITE;
}

int32_t tq_uniform_decode(int32_t instruction_set, int32_t dtype, int32_t bits, int32_t group_size, const void* codes,
                          const void* scales, int64_t rows, int64_t columns, void* weight) {
  const tq::UniformShape shape{rows, columns, group_size};
  if (!tq::valid(dtype, bits, shape)) return TQ_BAD_ARGUMENT;
  if (rows > 0 && (codes == nullptr || scales == nullptr || weight == nullptr)) return TQ_BAD_ARGUMENT;
  const tq::UniformKernels* kernels = TQ_CHOOSE(kUniform, instruction_set);
  if (kernels == nullptr) return TQ_UNAVAILABLE;
  const tq::DefaultFloatingPoint mode;
  kernels->decode[dtype][tq::width_index(bits)]({shape, static_cast<const uint8_t*>(codes),
                                                 static_cast<const uint8_t*>(scales), static_cast<uint8_t*>(weight)});
  return TQ_OK;
}
