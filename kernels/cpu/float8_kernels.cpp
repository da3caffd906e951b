// The float8 loops of one instruction set.
#include "float8.h"

namespace tq {

extern const Float8Kernels TQ_OF_SET(kFloat8);
const Float8Kernels TQ_OF_SET(kFloat8) = {
    {{encode_blocks<Bfloat16, false>, encode_blocks<Bfloat16, true>},
     {encode_blocks<Float16, false>, encode_blocks<Float16, true>},
     {encode_blocks<Float32, false>, encode_blocks<Float32, true>}},
    {decode_blocks<Bfloat16>, decode_blocks<Float16>, decode_blocks<Float32>},
};

}  // namespace tq
