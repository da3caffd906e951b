// Products of packed weights for the instruction set that this file is compiled for.
#include "product_activations.h"
#include "product_groups.h"
#include "product_rows.h"

#if defined(__AVX512F__)
#include "product_avx512.h"
namespace tq { namespace { using ProductSet = Avx512Product; } }
#elif defined(__AVX2__)
#include "product_avx2.h"
namespace tq { namespace { using ProductSet = Avx2Product; } }
#else
#include "product_portable.h"
namespace tq { namespace { using ProductSet = PortableProduct; } }
#endif

namespace tq {

extern const ProductKernels TQ_OF_SET(kProduct);
const ProductKernels TQ_OF_SET(kProduct) = {prepare_activations, multiply_packed<ByLanes, ProductSet>,
                                               multiply_packed<ByGroups, ProductSet>};

}  // namespace tq
