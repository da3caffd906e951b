// The C interface of the trellis format: checks every argument, then runs the kernels of the instruction set.
#include "trellis.h"

#include <cstdlib>

#include "floating_point.h"

namespace {

constexpr float kWidest = 2000.0f;  // of the deviation: coordinates, up to sqrt(128) times it, then fit 16 bits
constexpr std::size_t kAligned = 64;

bool valid(int32_t dtype, int32_t bits, int64_t rows, int64_t columns) {
  if (dtype < TQ_BF16 || dtype > TQ_F32 || bits < 2 || bits > 4) return false;
  int64_t weights;
  return rows >= 0 && columns > 0 && columns % 16 == 0 && !__builtin_mul_overflow(rows, columns * 4, &weights);
}

// Aligned memory that frees itself.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : at_(std::aligned_alloc(kAligned, bytes)) {}
  ~Memory() { std::free(at_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  uint16_t* words() const { return static_cast<uint16_t*>(at_); }

 private:
  void* at_;
};

}  // namespace

int32_t tq_trellis_encode(int32_t instruction_set, int32_t dtype, int32_t bits, const int8_t* codebook,
                          const float* signs, float deviation, const int16_t* multipliers, int32_t candidates,
                          const void* weight, int64_t rows, int64_t columns, uint8_t* codes, void* meta,
                          int64_t* bad_row) {
  if (!valid(dtype, bits, rows, columns) || !codebook || !bad_row) return TQ_BAD_ARGUMENT;
  if (!(deviation > 0.0f && deviation <= kWidest) || !multipliers || candidates < 1) return TQ_BAD_ARGUMENT;
  if (rows > 0 && (!weight || !codes || !meta)) return TQ_BAD_ARGUMENT;
  const tq::TrellisKernels* kernels = TQ_CHOOSE(kTrellis, instruction_set);
  if (!kernels) return TQ_UNAVAILABLE;
  const Memory costs(sizeof(uint16_t) * tq::kWindows * static_cast<std::size_t>(tq::trellis_cells(bits)));
  if (!costs.words()) return TQ_UNAVAILABLE;
  const tq::DefaultFloatingPoint mode;
  const int64_t broken = kernels->encode({static_cast<TqDtype>(dtype), {bits, codebook, signs}, deviation, multipliers,
                                          candidates, costs.words(), static_cast<const uint8_t*>(weight), rows, columns,
                                          codes, static_cast<uint8_t*>(meta)});
  if (broken < 0) return TQ_OK;
  *bad_row = broken;
  return TQ_NON_FINITE;
}

int32_t tq_trellis_decode(int32_t instruction_set, int32_t dtype, int32_t bits, const int8_t* codebook,
                          const float* signs, const uint8_t* codes, const void* meta, int64_t rows, int64_t columns,
                          void* weight) {
  if (!valid(dtype, bits, rows, columns) || !codebook) return TQ_BAD_ARGUMENT;
  if (rows > 0 && (!weight || !codes || !meta)) return TQ_BAD_ARGUMENT;
  const tq::TrellisKernels* kernels = TQ_CHOOSE(kTrellis, instruction_set);
  if (!kernels) return TQ_UNAVAILABLE;
  const tq::DefaultFloatingPoint mode;
  kernels->decode({static_cast<TqDtype>(dtype), {bits, codebook, signs}, codes, static_cast<const uint8_t*>(meta), rows,
                   columns, static_cast<uint8_t*>(weight)});
  return TQ_OK;
}
