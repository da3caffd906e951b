// The loops of a key-value cache of one instruction set.
#include "kv.h"

namespace tq {

#define TQ_KV_DECODE(Type)                                                                               \
  {                                                                                                      \
    decode_vectors<Type, 2>, decode_vectors<Type, 3>, decode_vectors<Type, 4>, decode_vectors<Type, 5>,  \
        decode_vectors<Type, 6>, decode_vectors<Type, 7>, decode_vectors<Type, 8>,                       \
  }

extern const KvKernels TQ_OF_SET(kKv);
const KvKernels TQ_OF_SET(kKv) = {
    {encode_vectors<Bfloat16>, encode_vectors<Float16>, encode_vectors<Float32>},
    {TQ_KV_DECODE(Bfloat16), TQ_KV_DECODE(Float16), TQ_KV_DECODE(Float32)},
};

}  // namespace tq
