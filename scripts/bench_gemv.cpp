// A plain product of a bfloat16 matrix and some vectors, as fast as memory lets one core be: what scripts/bench_gemv
// compares with. Each weight is widened to float32 and multiplied with fused multiply-adds; rows are read once.
#include <cstdint>
#include <cstring>

namespace {

constexpr int kLanes = 16;
constexpr int kTogether = 4;  // vectors whose loads and sums are independent

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

inline Floats widened(const uint16_t* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

template <int Tokens>
void multiply(const uint16_t* weight, const float* activations, float* results, int64_t rows, int64_t columns) {
  constexpr int kApart = Tokens == 1 ? kTogether : 1;
  for (int64_t row = 0; row < rows; ++row) {
    const uint16_t* const at = weight + row * columns;
    Floats sum[Tokens][kApart] = {};
    for (int64_t column = 0; column < columns; column += kLanes * kApart) {
      __builtin_prefetch(at + column + 2048);
      __builtin_prefetch(at + column + 2048 + 32);
      for (int i = 0; i < kApart; ++i) {
        const Floats value = widened(at + column + kLanes * i);
        for (int token = 0; token < Tokens; ++token) {
          Floats other;
          std::memcpy(&other, activations + token * columns + column + kLanes * i, sizeof other);
          sum[token][i] += value * other;
        }
      }
    }
    for (int token = 0; token < Tokens; ++token) {
      Floats all = sum[token][0];
      for (int i = 1; i < kApart; ++i) all += sum[token][i];
      float total = 0;
      for (int lane = 0; lane < kLanes; ++lane) total += all[lane];
      results[token * rows + row] = total;
    }
  }
}

}  // namespace

// weight: rows x columns of bfloat16; activations: tokens (1, 4 or a multiple of 8) x columns; results: tokens x rows.
extern "C" void bfloat16_product(const uint16_t* weight, const float* activations, float* results, int64_t rows,
                                 int64_t columns, int32_t tokens) {
  if (tokens == 1) multiply<1>(weight, activations, results, rows, columns);
  else if (tokens == 4) multiply<4>(weight, activations, results, rows, columns);
  else for (int32_t i = 0; i < tokens; i += 8) multiply<8>(weight, activations + i * columns, results + i * rows, rows, columns);
}
