#include "instances.h"
#include "vector_neon.h"

namespace tq {

const Kernels kNeon = {encode_any<Neon>, decode_any<Neon>};

}  // namespace tq
