// Encoding and decoding of groups, as many side by side as an instruction set has lanes.
#include "affine_pack.h"
#include "affine_search.h"

namespace tq {
namespace {

constexpr float kIntegers = 8388608.0f;  // 2^23: added to a code, it leaves the code in the low bits

// Some groups of a job, at most kLanes; lanes beyond them repeat the last one.
struct Batch {
  int64_t first;
  int count;
  int64_t group(int lane) const { return first + (lane < count ? lane : count - 1); }
};

inline Batch batch_at(int64_t first, int64_t groups) {
  const int64_t left = groups - first;
  return {first, left < kLanes ? static_cast<int>(left) : kLanes};
}

template <class Type>
inline void load_groups(const uint8_t* weight, const Batch& batch, int size, Floats* values) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const int64_t start = batch.group(lane) * size;
    for (int i = 0; i < size; ++i) values[i][lane] = load<Type>(weight, start + i);
  }
}

template <class Type>
inline void store_pair(const AffineEncode& job, const Batch& batch, const Pair& pair) {
  for (int lane = 0; lane < batch.count; ++lane) {
    store<Type>(job.scales, batch.first + lane, pair.scale[lane]);
    store<Type>(job.biases, batch.first + lane, pair.bias[lane]);
  }
}

inline void store_codes(const AffineEncode& job, const Batch& batch, const Floats* values, const Pair& pair) {
  const int size = job.shape.group_size, bits = job.shape.bits, width = size * bits / 32;
  const float largest = static_cast<float>((1 << bits) - 1);
  Words words[kAffineLargestGroup * kAffineWidestCode / 32];
  for (int start = 0; start < size; start += 32) {
    Words codes[32];
    for (int i = 0; i < 32; ++i) {
      codes[i] = (Words)(code_of(values[start + i], pair, largest) + kIntegers) & 0xFFu;
    }
    pack(bits, codes, words + start / 32 * bits);
  }
  for (int lane = 0; lane < batch.count; ++lane) {
    uint8_t* const to = job.words + (batch.first + lane) * width * 4;
    for (int i = 0; i < width; ++i) {
      const uint32_t word = words[i][lane];
      std::memcpy(to + i * 4, &word, sizeof word);
    }
  }
}

inline int64_t first_broken(const Range& range, const Batch& batch) {
  for (int lane = 0; lane < batch.count; ++lane) {
    if (range.broken[lane]) return batch.first + lane;
  }
  return -1;
}

template <class Type>
int64_t encode_as(const AffineEncode& job) {
  const int size = job.shape.group_size;
  const float largest = static_cast<float>((1 << job.shape.bits) - 1);
  Floats values[kAffineLargestGroup];
  for (int64_t first = 0; first < job.shape.groups; first += kLanes) {
    const Batch batch = batch_at(first, job.shape.groups);
    load_groups<Type>(job.weight, batch, size, values);
    const Range range = range_of(values, size);
    const int64_t broken = first_broken(range, batch);
    if (broken >= 0) return broken;
    const Pair pair = job.least_squares ? search<Type>(values, size, range, largest) : minmax(range, largest);
    store_pair<Type>(job, batch, pair);
    store_codes(job, batch, values, pair);
  }
  return -1;
}

int64_t encode(const AffineEncode& job) {
  if (job.shape.dtype == TQ_BF16) return encode_as<Bfloat>(job);
  if (job.shape.dtype == TQ_F16) return encode_as<Half>(job);
  return encode_as<Single>(job);
}

inline void load_words(const AffineDecode& job, const Batch& batch, int width, Words* words) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint8_t* const from = job.words + batch.group(lane) * width * 4;
    for (int i = 0; i < width; ++i) {
      uint32_t word;
      std::memcpy(&word, from + i * 4, sizeof word);
      words[i][lane] = word;
    }
  }
}

template <class Type>
inline Pair load_pair(const AffineDecode& job, const Batch& batch) {
  Pair pair = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    pair.scale[lane] = load<Type>(job.scales, batch.group(lane));
    pair.bias[lane] = load<Type>(job.biases, batch.group(lane));
  }
  return pair;
}

inline void store_values(const AffineDecode& job, const Batch& batch, const Words* codes, const Pair& pair, int start) {
  Floats values[32];
  for (int i = 0; i < 32; ++i) {
    const Floats code = (Floats)(codes[i] | to_bits(kIntegers)) - kIntegers;
    values[i] = code * pair.scale + pair.bias;
  }
  for (int lane = 0; lane < batch.count; ++lane) {
    uint8_t* const to = job.weight + ((batch.first + lane) * job.shape.group_size + start) * 4;
    for (int i = 0; i < 32; ++i) store<Single>(to, i, values[i][lane]);
  }
}

template <class Type>
void decode_as(const AffineDecode& job) {
  const int size = job.shape.group_size, bits = job.shape.bits;
  Words words[kAffineLargestGroup * kAffineWidestCode / 32];
  for (int64_t first = 0; first < job.shape.groups; first += kLanes) {
    const Batch batch = batch_at(first, job.shape.groups);
    load_words(job, batch, size * bits / 32, words);
    const Pair pair = load_pair<Type>(job, batch);
    for (int start = 0; start < size; start += 32) {
      Words codes[32];
      unpack(bits, words + start / 32 * bits, codes);
      store_values(job, batch, codes, pair, start);
    }
  }
}

void decode(const AffineDecode& job) {
  if (job.shape.dtype == TQ_BF16) return decode_as<Bfloat>(job);
  if (job.shape.dtype == TQ_F16) return decode_as<Half>(job);
  return decode_as<Single>(job);
}

}  // namespace

extern const AffineKernels TQ_OF_SET(kAffine) = {encode, decode};

}  // namespace tq
