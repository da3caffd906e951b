// The C interface of the INT4 kernels: checks what it is given, picks the instruction set.
#include "floating_point.h"
#include "int4_interface.h"

namespace tq {
namespace {

// Which of the group sizes, or -1.
int size_index(int32_t group_size) {
  if (group_size == 32) return 0;
  if (group_size == 64) return 1;
  return group_size == 128 ? 2 : -1;
}

bool valid(int32_t dtype, int32_t group_size, int64_t rows, int64_t columns) {
  if (dtype < TQ_BF16 || dtype > TQ_F32 || size_index(group_size) < 0) return false;
  return rows >= 0 && columns > 0 && columns % group_size == 0;
}

}  // namespace
}  // namespace tq

int32_t tq_int4_encode(int32_t instruction_set, int32_t dtype, int32_t scale, int32_t group_size, const void* weight,
                       int64_t rows, int64_t columns, int32_t* words, void* scales, int64_t* bad_row) {
  if (!tq::valid(dtype, group_size, rows, columns) || bad_row == nullptr) return TQ_BAD_ARGUMENT;
  if (scale < TQ_INT4_ABSMAX || scale > TQ_INT4_SIGNED) return TQ_BAD_ARGUMENT;
  if (rows > 0 && (weight == nullptr || words == nullptr || scales == nullptr)) return TQ_BAD_ARGUMENT;
  const tq::Int4Kernels* kernels = TQ_CHOOSE(kInt4, instruction_set);
  if (kernels == nullptr) return TQ_UNAVAILABLE;
  const tq::DefaultFloatingPoint mode;
  const int64_t per_row = columns / group_size;
  const tq::Int4Encode job{rows * per_row, static_cast<const uint8_t*>(weight), reinterpret_cast<uint8_t*>(words),
                           static_cast<uint8_t*>(scales)};
  const int64_t bad = kernels->encode[dtype][scale][tq::size_index(group_size)](job);
  if (bad < 0) return TQ_OK;
  *bad_row = bad / per_row;
  return TQ_NON_FINITE;
}

int32_t tq_int4_decode(int32_t instruction_set, int32_t dtype, int32_t group_size, const int32_t* words,
                       const void* scales, int64_t rows, int64_t columns, float* weight) {
  if (!tq::valid(dtype, group_size, rows, columns)) return TQ_BAD_ARGUMENT;
  if (rows > 0 && (words == nullptr || scales == nullptr || weight == nullptr)) return TQ_BAD_ARGUMENT;
  const tq::Int4Kernels* kernels = TQ_CHOOSE(kInt4, instruction_set);
  if (kernels == nullptr) return TQ_UNAVAILABLE;
  const tq::DefaultFloatingPoint mode;
  kernels->decode[dtype][tq::size_index(group_size)](
      {rows * (columns / group_size), reinterpret_cast<const uint8_t*>(words), static_cast<const uint8_t*>(scales),
       weight});
  return TQ_OK;
}
