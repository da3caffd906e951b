// The loops of uniform quantisation of one instruction set.
#include "uniform.h"

namespace tq {

#define TQ_UNIFORM_ENCODE(Type)                                                         \
  {                                                                                     \
    {encode_groups<Type, EightBits, false>, encode_groups<Type, EightBits, true>},      \
        {encode_groups<Type, FourBits, false>, encode_groups<Type, FourBits, true>},    \
  }
#define TQ_UNIFORM_DECODE(Type) \
  { decode_groups<Type, EightBits>, decode_groups<Type, FourBits> }

extern const UniformKernels TQ_OF_SET(kUniform);
const UniformKernels TQ_OF_SET(kUniform) = {
    {TQ_UNIFORM_ENCODE(Bfloat16), TQ_UNIFORM_ENCODE(Float16), TQ_UNIFORM_ENCODE(Float32)},
    {TQ_UNIFORM_DECODE(Bfloat16), TQ_UNIFORM_DECODE(Float16), TQ_UNIFORM_DECODE(Float32)},
};

}  // namespace tq
