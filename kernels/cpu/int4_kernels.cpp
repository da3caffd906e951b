// The INT4 loops of one instruction set.
#include "int4.h"

namespace tq {

#define TQ_INT4_SIZES(Type, scale) \
  { encode_groups<Type, 32, scale>, encode_groups<Type, 64, scale>, encode_groups<Type, 128, scale> }
#define TQ_INT4_ENCODE(Type) \
  { TQ_INT4_SIZES(Type, TQ_INT4_ABSMAX), TQ_INT4_SIZES(Type, TQ_INT4_SEARCH), TQ_INT4_SIZES(Type, TQ_INT4_SIGNED) }
#define TQ_INT4_DECODE(Type) \
  { decode_groups<Type, 32>, decode_groups<Type, 64>, decode_groups<Type, 128> }

extern const Int4Kernels TQ_OF_SET(kInt4);
const Int4Kernels TQ_OF_SET(kInt4) = {
    {TQ_INT4_ENCODE(Bfloat16), TQ_INT4_ENCODE(Float16), TQ_INT4_ENCODE(Float32)},
    {TQ_INT4_DECODE(Bfloat16), TQ_INT4_DECODE(Float16), TQ_INT4_DECODE(Float32)},
};

}  // namespace tq
