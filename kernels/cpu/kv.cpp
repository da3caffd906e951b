// The C interface of the key-value cache: checks what it is given, picks the instruction set, shares the vectors.
#include <algorithm>

#include "floating_point.h"
#include "kv_interface.h"
#include "product_threads.h"

namespace tq {
namespace {

// Numbers of one piece of work: some tens of microseconds.
constexpr int64_t kPiece = 1 << 15;

bool valid(const KvCodec* codec, int32_t dtype, const KvShape* shape, int32_t threads) {
  if (codec == nullptr || shape == nullptr || dtype < TQ_BF16 || dtype > TQ_F32 || threads < 1) return false;
  const int32_t block = codec->block;
  if (codec->bits < 2 || codec->bits > 8 || block < 16 || block > kKvLargestBlock || (block & (block - 1)) != 0) {
    return false;
  }
  if (codec->blocks < 1 || codec->scale < TQ_KV_LENGTH || codec->scale > TQ_KV_LEAST_SQUARES) return false;
  if (codec->levels == nullptr || codec->boundaries == nullptr || codec->signs == nullptr) return false;
  return std::all_of(shape->counts, shape->counts + 3, [](int64_t count) { return count >= 0; });
}

int64_t count_of(const KvShape& shape) { return shape.counts[0] * shape.counts[1] * shape.counts[2]; }

// Runs run(first, last) over all vectors.
template <class Run>
void share_vectors(const KvCodec& codec, const KvShape& shape, int32_t threads, const Run& run) {
  struct Vectors {
    const Run& run;
    int64_t count, step;
  };
  const int64_t size = static_cast<int64_t>(codec.block) * codec.blocks, count = count_of(shape);
  const int64_t step = std::max<int64_t>(1, kPiece / size);
  const Vectors vectors{run, count, step};
  const auto piece = [](const void* work, int64_t number, int64_t) {
    const Vectors& all = *static_cast<const Vectors*>(work);
    all.run(number * all.step, std::min((number + 1) * all.step, all.count));
  };
  share_work({piece, &vectors, (count + step - 1) / step}, threads);
}

}  // namespace
}  // namespace tq

int32_t tq_kv_encode(int32_t instruction_set, const TqKvCodec* codec, int32_t dtype, const TqKvShape* shape,
                     const void* vectors, uint8_t* codes, void* scales, int32_t threads) {
  if (!tq::valid(codec, dtype, shape, threads)) return TQ_BAD_ARGUMENT;
  if (tq::count_of(*shape) > 0 && (vectors == nullptr || codes == nullptr || scales == nullptr)) return TQ_BAD_ARGUMENT;
  const tq::KvKernels* kernels = TQ_CHOOSE(kKv, instruction_set);
  if (kernels == nullptr) return TQ_UNAVAILABLE;
  const tq::KvEncode job{vectors, codes, static_cast<uint8_t*>(scales)};
  tq::share_vectors(*codec, *shape, threads, [&](int64_t first, int64_t last) {
    kernels->encode[dtype](*codec, *shape, job, first, last);
  });
  return TQ_OK;
}

int32_t tq_kv_decode(int32_t instruction_set, const TqKvCodec* codec, int32_t dtype, const TqKvShape* shape,
                     const uint8_t* codes, const void* scales, void* vectors, int32_t threads) {
  if (!tq::valid(codec, dtype, shape, threads)) return TQ_BAD_ARGUMENT;
  if (tq::count_of(*shape) > 0 && (vectors == nullptr || codes == nullptr || scales == nullptr)) return TQ_BAD_ARGUMENT;
  const tq::KvKernels* kernels = TQ_CHOOSE(kKv, instruction_set);
  if (kernels == nullptr) return TQ_UNAVAILABLE;
  const tq::KvDecode job{codes, static_cast<const uint8_t*>(scales), vectors};
  tq::share_vectors(*codec, *shape, threads, [&](int64_t first, int64_t last) {
    kernels->decode[dtype][codec->bits - 2](*codec, *shape, job, first, last);
  });
  return TQ_OK;
}
