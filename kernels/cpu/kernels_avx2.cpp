#include "instances.h"
#include "vector_avx2.h"

namespace tq {

const Kernels kAvx2 = {encode_any<Avx2>, decode_any<Avx2>};

}  // namespace tq
