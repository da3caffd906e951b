#include "constants.h"

#include <cmath>
#include <limits>

namespace tq {
namespace {

// The largest float whose quotient by `root` rounds to `boundary` or less. Division by a positive number is monotone,
// so comparing before the division with this decides as comparing after it with the boundary.
float before_division(float boundary, float root) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  float threshold = boundary * root;
  while (threshold / root > boundary) threshold = std::nextafterf(threshold, -kInfinity);
  for (;;) {
    const float next = std::nextafterf(threshold, kInfinity);
    if (next / root > boundary) return threshold;
    threshold = next;
  }
}

}  // namespace

Constants make_constants(const TqTables& tables) {
  Constants constants{};
  constants.tables = tables;
  const double root = std::sqrt(static_cast<double>(tables.group_size));
  constants.root = static_cast<float>(root);
  const double inverse = 1.0 / static_cast<double>(constants.root);
  constants.inverse_high = static_cast<float>(inverse);
  constants.inverse_low = static_cast<float>(inverse - static_cast<double>(constants.inverse_high));
  const int levels = 1 << tables.bits;
  for (int k = 0; k < kLevels; ++k) {
    constants.levels[0][k] = tables.centroids[k % levels];
    constants.levels[1][k] = -tables.centroids[k % levels];
  }
  for (int i = 0; i < tables.group_size; ++i) {
    constants.negative_in[i] = tables.signs_in[i] < 0.0f;
    constants.negative_out[i] = tables.signs_out[i] < 0.0f;
  }
  for (int s = 0; s < tables.bits; ++s) {
    const int step = 1 << s;
    for (int k = 0; k + step < levels; k += 2 * step) {
      constants.thresholds[s][k] = before_division(tables.boundaries[k + step - 1], constants.root);
    }
  }
  return constants;
}

}  // namespace tq
