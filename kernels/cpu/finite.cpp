// Finds NaN and Inf in weights that are kept as they are. Plain loops: compilers vectorise them on every target.
#include "tq_cpu.h"

#include <cstring>

namespace {

constexpr int64_t kBlock = 4096;

// A value is NaN or Inf where every exponent bit is set. Blocks are tested whole, the first bad one value by value.
template <class Word>
int64_t first_with(const Word* values, int64_t count, Word exponent) {
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t stop = start + kBlock < count ? start + kBlock : count;
    Word found = 0;
    for (int64_t i = start; i < stop; ++i) found |= static_cast<Word>((values[i] & exponent) == exponent);
    for (int64_t i = start; found && i < stop; ++i) {
      if ((values[i] & exponent) == exponent) return i;
    }
  }
  return -1;
}

}  // namespace

int64_t tq_first_non_finite(int32_t dtype, const void* values, int64_t count) {
  if (dtype == TQ_BF16) return first_with<uint16_t>(static_cast<const uint16_t*>(values), count, 0x7F80);
  if (dtype == TQ_F16) return first_with<uint16_t>(static_cast<const uint16_t*>(values), count, 0x7C00);
  return first_with<uint32_t>(static_cast<const uint32_t*>(values), count, 0x7F800000);
}
