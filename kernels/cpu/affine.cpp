// The C interface of MLX's affine format: checks every argument, then runs the kernels of the instruction set.
#include "affine.h"
#include "floating_point.h"

namespace {

using tq::AffineShape;

bool is_one_of(int32_t value, int32_t first, int32_t last) { return value >= first && value <= last; }

// The shape in groups; group_size is 0 where an argument is refused.
AffineShape shape_of(int32_t dtype, int32_t bits, int32_t group_size, int64_t rows, int64_t columns) {
  const bool widths = bits != 7 && is_one_of(bits, 2, 8) && is_one_of(dtype, TQ_BF16, TQ_F32);
  const bool sizes = group_size == 32 || group_size == 64 || group_size == 128;
  if (!widths || !sizes || rows < 0 || columns < 1 || columns % group_size) return {};
  int64_t weights;
  if (__builtin_mul_overflow(rows, columns, &weights) || weights > INT64_MAX / 8) return {};
  return {static_cast<TqDtype>(dtype), bits, group_size, weights / group_size};
}

}  // namespace

int32_t tq_affine_encode(int32_t instruction_set, int32_t dtype, int32_t bits, int32_t group_size,
                         int32_t least_squares, const void* weight, int64_t rows, int64_t columns, void* words,
                         void* scales, void* biases, int64_t* bad_row) {
  const AffineShape shape = shape_of(dtype, bits, group_size, rows, columns);
  if (!shape.group_size || !is_one_of(least_squares, 0, 1)) return TQ_BAD_ARGUMENT;
  if (!weight || !words || !scales || !biases || !bad_row) return TQ_BAD_ARGUMENT;
  const tq::AffineKernels* kernels = TQ_CHOOSE(kAffine, instruction_set);
  if (!kernels) return TQ_UNAVAILABLE;
  const tq::DefaultFloatingPoint mode;
  const int64_t broken = kernels->encode({shape, least_squares == 1, static_cast<const uint8_t*>(weight),
                                          static_cast<uint8_t*>(words), static_cast<uint8_t*>(scales),
                                          static_cast<uint8_t*>(biases)});
  if (broken < 0) return TQ_OK;
  *bad_row = broken / (columns / group_size);
  return TQ_NON_FINITE;
}

int32_t tq_affine_decode(int32_t instruction_set, int32_t dtype, int32_t bits, int32_t group_size, const void* words,
                         const void* scales, const void* biases, int64_t rows, int64_t columns, void* weight) {
  const AffineShape shape = shape_of(dtype, bits, group_size, rows, columns);
  if (!shape.group_size || !words || !scales || !biases || !weight) return TQ_BAD_ARGUMENT;
  const tq::AffineKernels* kernels = TQ_CHOOSE(kAffine, instruction_set);
  if (!kernels) return TQ_UNAVAILABLE;
  const tq::DefaultFloatingPoint mode;
  kernels->decode({shape, static_cast<const uint8_t*>(words), static_cast<const uint8_t*>(scales),
                   static_cast<const uint8_t*>(biases), static_cast<uint8_t*>(weight)});
  return TQ_OK;
}
