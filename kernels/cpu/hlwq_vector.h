// The vectors of the instruction set that a file is compiled for.
#pragma once

#include "hlwq.h"

#define TQ_VECTOR_portable 0
#define TQ_VECTOR_avx2 1
#define TQ_VECTOR_avx512 2
#define TQ_VECTOR_neon 3

#if TQ_PASTE(TQ_VECTOR, TQ_SET) == TQ_VECTOR_avx512
#include "vector_avx512.h"
namespace tq { namespace { using HlwqVector = Avx512; } }
#elif TQ_PASTE(TQ_VECTOR, TQ_SET) == TQ_VECTOR_avx2
#include "vector_avx2.h"
namespace tq { namespace { using HlwqVector = Avx2; } }
#elif TQ_PASTE(TQ_VECTOR, TQ_SET) == TQ_VECTOR_neon
#include "vector_neon.h"
namespace tq { namespace { using HlwqVector = Neon; } }
#else
#include "vector_portable.h"
namespace tq { namespace { using HlwqVector = Portable; } }
#endif
