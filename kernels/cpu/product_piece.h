// What products by lanes and by groups share: the rows at hand, the choice of a reader, and how a result is stored.
#pragma once

#include "product.h"
#include "product_scales.h"

namespace tq {
namespace {

// Neighbouring rows of a matrix, their scales as stored and as numbers.
struct ProductPiece {
  int64_t first;  // row of the matrix
  int64_t rows;
  const uint8_t* codes;
  const uint8_t* stored_scales;
  const float* scales;
};

// A NaN becomes the plain quiet one: its sign would depend on the processor.
inline void store_result(TqDtype dtype, float value, uint8_t* result, int64_t row) {
  const float plain = value == value ? value : __builtin_nanf("");
  if (dtype == TQ_F32) {
    std::memcpy(result + 4 * row, &plain, sizeof plain);
    return;
  }
  const uint16_t bits = float_to_bfloat(plain);
  std::memcpy(result + 2 * row, &bits, sizeof bits);
}

// Of the readers for 4, 3 and 2 bits.
template <class Order, class Set, template <int> class Reader>
void multiply_bits(const ProductJob& job, const ProductBatch& batch, const ProductPiece& piece, uint8_t* memory) {
  const int32_t bits = job.format->bits;
  if (bits == 4) return Order::template multiply<Set, Reader<4>>(job, batch, piece, memory);
  if (bits == 3) return Order::template multiply<Set, Reader<3>>(job, batch, piece, memory);
  return Order::template multiply<Set, Reader<2>>(job, batch, piece, memory);
}

// memory: of memory_bytes. Its first part is the order's own.
template <class Order, class Set>
void multiply_packed(const ProductJob& job, const ProductBatch& batch, int64_t first, int64_t last, uint8_t* memory) {
  const int64_t row = batch.matrix * job.all_rows + first;
  float* const scales = reinterpret_cast<float*>(memory + kBlocks * kTurnedRows * (job.rows.slots + 4 * job.rows.groups));
  const ProductPiece piece{first, last - first, job.codes + row * job.rows.code_bytes,
                           job.scales + row * job.rows.scale_bytes, scales};
  read_scales(job.format->scales, job.format->bits, piece.stored_scales, piece.rows * job.rows.groups, scales);
  const int32_t codes = job.format->codes;
  if (codes == TQ_CODES_BYTES) {
    return Order::template multiply<Set, typename Set::Plain>(job, batch, piece, memory);
  }
  if (codes == TQ_CODES_TABLE) return multiply_bits<Order, Set, Set::template Table>(job, batch, piece, memory);
  return multiply_bits<Order, Set, Set::template Trellis>(job, batch, piece, memory);
}

}  // namespace
}  // namespace tq
