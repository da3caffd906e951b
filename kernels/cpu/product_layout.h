// Where the groups of a row lie, in codes, scales and prepared activations.
#pragma once

#include "product.h"

namespace tq {

// Of the sizes that the format's factors are for.
inline int size_index(int64_t size) { return size > 64 ? 0 : size > 32 ? 1 : size > 16 ? 2 : 3; }

inline void add_run(const TqProductFormat& format, int64_t groups, int64_t size, ProductRows& rows) {
  if (groups == 0) return;
  ProductRun& run = rows.run[rows.runs++];
  run.groups = groups;
  run.size = size;
  run.column = rows.columns;
  run.code = rows.code_bytes;
  run.group = rows.groups;
  run.slot = rows.slots;
  run.factor = format.factors[size_index(size)];
  rows.columns += groups * size;
  rows.code_bytes += (groups * size * format.bits + 7) / 8;
  rows.groups += groups;
  rows.slots += groups * run.slot_bytes();
}

inline ProductRows rows_of(const TqProductFormat& format, int64_t columns) {
  ProductRows rows{};
  const int64_t whole = columns / format.group_size, rest = columns % format.group_size;
  if (format.tail == TQ_TAIL_PADDED) {
    add_run(format, whole + (rest > 0 ? 1 : 0), format.group_size, rows);
  } else {
    add_run(format, whole, format.group_size, rows);
    if (format.tail == TQ_TAIL_SHORT) add_run(format, rest > 0 ? 1 : 0, rest, rows);
    else for (int64_t size = 64; size >= 16; size /= 2) add_run(format, rest & size ? 1 : 0, size, rows);
  }
  rows.columns = columns;
  rows.scale_bytes = rows.groups * (format.scales == TQ_SCALES_F32 ? 4 : 2);
  return rows;
}

}  // namespace tq
