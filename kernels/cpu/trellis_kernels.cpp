// The trellis format for the instruction set that this file is compiled for.
#include "trellis_decode.h"
#include "trellis_encode.h"

#if defined(__AVX512F__)
#include "trellis_numbers_avx512.h"
#include "trellis_paths_avx512.h"
namespace tq { namespace {
template <int BITS> using TrellisPaths = Avx512Paths<BITS>;
using TrellisNumbers = Avx512Numbers;
} }
#elif defined(__AVX2__)
#include "trellis_numbers_avx2.h"
#include "trellis_paths_avx2.h"
namespace tq { namespace {
template <int BITS> using TrellisPaths = Avx2Paths<BITS>;
using TrellisNumbers = Avx2Numbers;
} }
#else
#include "trellis_paths_generic.h"
namespace tq { namespace {
template <int BITS> using TrellisPaths = GenericPaths<BITS>;
using TrellisNumbers = GenericNumbers;
} }
#endif

namespace tq {

extern const TrellisKernels TQ_OF_SET(kTrellis) = {encode_trellis<TrellisPaths, TrellisNumbers>,
                                                   decode_trellis<TrellisNumbers>};

}  // namespace tq
