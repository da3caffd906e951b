// Finds NaN and Inf in weights that are kept as they are. Plain loops: compilers vectorise them on every target.
#include "tq_cpu.h"

#include <cstring>

namespace {

constexpr int64_t kBlock = 4096;

// A value is NaN or Inf where every exponent bit is set. The memory need not be aligned.
template <class Word>
Word is_broken(const uint8_t* values, int64_t i, Word exponent) {
  Word value;
  std::memcpy(&value, values + i * static_cast<int64_t>(sizeof value), sizeof value);
  return static_cast<Word>((value & exponent) == exponent);
}

// Blocks are tested whole, the first bad one value by value.
template <class Word>
int64_t first_with(const void* memory, int64_t count, Word exponent) {
  const uint8_t* values = static_cast<const uint8_t*>(memory);
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t stop = start + kBlock < count ? start + kBlock : count;
    Word found = 0;
    for (int64_t i = start; i < stop; ++i) found |= is_broken(values, i, exponent);
    for (int64_t i = start; found && i < stop; ++i) {
      if (is_broken(values, i, exponent)) return i;
    }
  }
  return -1;
}

}  // namespace

int64_t tq_first_non_finite(int32_t dtype, const void* values, int64_t count) {
  if (dtype == TQ_BF16) return first_with<uint16_t>(values, count, 0x7F80);
  if (dtype == TQ_F16) return first_with<uint16_t>(values, count, 0x7C00);
  return first_with<uint32_t>(values, count, 0x7F800000);
}
