#include "instances.h"
#include "vector_portable.h"

namespace tq {

const Kernels kPortable = {encode_any<Portable>, decode_any<Portable>};

}  // namespace tq
