// Walks through every case of the two short divisions of the kernels and counts the quotients that are not correctly
// rounded. Scaling by powers of two is exact where nothing under- or overflows, so one binade of each operand is enough.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

static float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static const uint32_t kOne = 0x3F800000u, kSignificands = 1u << 23;

// x / root as a product with the two-part reciprocal.
static int64_t wrong_by_root(int group_size) {
  const float root = static_cast<float>(std::sqrt(static_cast<double>(group_size)));
  const double inverse = 1.0 / static_cast<double>(root);
  const float high = static_cast<float>(inverse);
  const float low = static_cast<float>(inverse - static_cast<double>(high));
  int64_t wrong = 0;
  for (uint32_t i = 0; i < kSignificands; ++i) {
    const float x = from_bits(kOne + i);
    wrong += std::fma(x, high, x * low) != x / root;
  }
  return wrong;
}

// x / n for every n and every x with `bits` significand bits after the first: one correction of x * (1 / n).
static int64_t wrong_one_step(int bits) {
  int64_t wrong = 0;
  for (uint32_t step = 0; step < 1u << bits; ++step) {
    const float x = from_bits(kOne + (step << (23 - bits)));
    for (uint32_t i = 0; i < kSignificands; ++i) {
      const float n = from_bits(kOne + i), reciprocal = 1.0f / n, quotient = x * reciprocal;
      wrong += std::fma(std::fma(-quotient, n, x), reciprocal, quotient) != x / n;
    }
  }
  return wrong;
}

int main(int argc, char** argv) {
  const int bits = argc > 1 ? std::atoi(argv[1]) : 7;
  int64_t wrong = 0;
  for (int group_size = 32; group_size <= 256; group_size *= 2) wrong += wrong_by_root(group_size);
  std::printf("%lld\n", static_cast<long long>(wrong));
  std::printf("%lld\n", static_cast<long long>(wrong_one_step(bits)));
  return 0;
}
