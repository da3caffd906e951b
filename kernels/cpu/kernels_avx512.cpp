#include "instances.h"
#include "vector_avx512.h"

namespace tq {

const Kernels kAvx512 = {encode_any<Avx512>, decode_any<Avx512>};

}  // namespace tq
