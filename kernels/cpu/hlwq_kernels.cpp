// HLWQ for the instruction set that this file is compiled for.
#include "hlwq_vector.h"

namespace tq {

extern const HlwqKernels TQ_OF_SET(kHlwq) = {encode_hlwq<HlwqVector>, decode_hlwq<HlwqVector>};

}  // namespace tq
