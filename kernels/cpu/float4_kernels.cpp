// The FP4 loops of one instruction set.
#include "float4.h"

namespace tq {

// MX quotients are numbers of the storage type, NV quotients float32.
#define TQ_FLOAT4_ENCODE(Type) \
  { encode_groups<Type, 32, Type::kVanishes, mx_scale<Type>>, encode_groups<Type, 16, 0, nv_scale<Type>> }

extern const Float4Kernels TQ_OF_SET(kFloat4);
const Float4Kernels TQ_OF_SET(kFloat4) = {
    {TQ_FLOAT4_ENCODE(Bfloat16), TQ_FLOAT4_ENCODE(Float16), TQ_FLOAT4_ENCODE(Float32)},
    {decode_groups<32, mx_multiplier>, decode_groups<16, nv_multiplier>},
};

}  // namespace tq
