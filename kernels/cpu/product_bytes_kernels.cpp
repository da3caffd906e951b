// Products of packed weights for AVX-512 with VBMI and VNNI, which the flags of the set do not switch on: some of its
// processors lack them. Compiled for every set, empty for all others.
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512vbmi,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512vbmi,avx512vnni")
#endif

#include "product_activations.h"
#include "product_rows.h"
#include "product_turned.h"
#include "product_vbmi.h"

namespace tq {

const ProductKernels kProductBytes_avx512 = {prepare_activations, multiply_packed<ByLanes, VbmiProduct>,
                                            multiply_packed<Turning, VbmiProduct>};

}  // namespace tq

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
