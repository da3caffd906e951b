// The constants of a call: thresholds and reciprocals whose every bit matters.
#pragma once

#include "kernels.h"

namespace tq {

Constants make_constants(const TqTables& tables);

}  // namespace tq
