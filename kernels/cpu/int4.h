// INT4 weights with one scale a group: the loops. The rules are told in tq_kernels/int4.py.
//
// Left out: threads, and what an argument may be. Loops hold no branches: both sides of every choice are computed.
#pragma once

#include "int4_interface.h"
#include "int4_lanes.h"

namespace tq {
namespace {

constexpr int kPerWord = 8;      // numbers in a word
constexpr int kCandidates = 16;  // scales that the search tries
constexpr int kTogether = 4;     // of which so many have their sums run side by side
constexpr float kUnits = 12582912.0f;  // 1.5 * 2^23: floats near it are integers

// A batch of groups: weights[i] holds weight i of each group.
template <int kGroup>
struct Batch {
  Floats weights[kGroup];
};

// The groups from `first` on; lanes beyond the last group hold zeros.
template <class Type, int kGroup>
void load(const Int4Encode& job, int64_t first, Batch<kGroup>& batch) {
  const int64_t present = job.groups - first < kLanes ? job.groups - first : kLanes;
  float lanes[kGroup * kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    typename Type::Word words[kGroup] = {};
    const int64_t bytes = static_cast<int64_t>(sizeof words);
    if (lane < present) std::memcpy(words, job.weight + (first + lane) * bytes, sizeof words);
    float group[kGroup];
    for (int i = 0; i < kGroup; ++i) group[i] = Type::widen(words[i]);
    for (int i = 0; i < kGroup; ++i) lanes[i * kLanes + lane] = group[i];
  }
  std::memcpy(batch.weights, lanes, sizeof lanes);
}

// The first lane with a magnitude that is refused, or -1. NaN and Inf are greater than every number.
template <class Type, int kGroup>
int first_refused(const Batch<kGroup>& batch) {
  Words greatest{};
  for (int i = 0; i < kGroup; ++i) greatest = most(greatest, (Words)batch.weights[i] & 0x7FFFFFFFu);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (greatest[lane] >= Type::kTooLarge) return lane;
  }
  return -1;
}

// How far a group reaches to each side of zero.
struct Reach {
  Floats above;
  Floats below;
};

template <int kGroup>
Reach reach_of(const Batch<kGroup>& batch) {
  Reach reach{};
  for (int i = 0; i < kGroup; ++i) {
    reach.above = most(reach.above, batch.weights[i]);
    reach.below = most(reach.below, -batch.weights[i]);
  }
  return reach;
}

template <class Type>
Floats absmax_scale(Floats absmax) {
  const Floats scale = Type::rounded(absmax / 7.5f);
  return scale == 0.0f ? all(Type::kEpsilon) : scale;
}

inline Floats clamped(Floats values) { return least(most(values, all(-8.0f)), all(7.0f)); }
inline Floats nearest(Floats values) { return (clamped(values) + kUnits) - kUnits; }

// Candidate scales, and the sums of the squared errors in units of their squares.
struct Candidates {
  Floats scales[kTogether];
  Floats errors[kTogether];
};

template <int kGroup>
void measure(const Batch<kGroup>& batch, Candidates& candidates) {
  Floats inverses[kTogether], sums[kTogether];
  for (int k = 0; k < kTogether; ++k) {
    inverses[k] = 1.0f / candidates.scales[k];
    sums[k] = Floats{};
  }
  for (int i = 0; i < kGroup; ++i) {
    for (int k = 0; k < kTogether; ++k) {
      const Floats value = batch.weights[i] * inverses[k];
      const Floats error = value - nearest(value);
      sums[k] += error * error;
    }
  }
  for (int k = 0; k < kTogether; ++k) candidates.errors[k] = sums[k];
}

// Candidate k: the scale of absmax, then the least scale that cuts nothing off, times 50/48 down to 36/48.
template <class Type, bool kSigned>
Floats candidate(const Reach& reach, int k) {
  const Floats absmax = most(reach.above, reach.below);
  if (k == 0) return absmax_scale<Type>(absmax);
  const Floats whole = kSigned ? absmax / 8.0f : most(reach.above / 7.0f, reach.below / 8.0f);
  const Floats scale = Type::rounded(whole * (static_cast<float>(51 - k) / 48.0f));
  return kSigned ? (reach.above > reach.below ? -scale : scale) : scale;
}

// The least error wins, the first of equals. Comparisons with NaN, which tiny groups may bring, keep what was there.
template <class Type, int kGroup, bool kSigned>
Floats searched_scale(const Batch<kGroup>& batch) {
  const Reach reach = reach_of(batch);
  const Floats inverse = 1.0f / most(reach.above, reach.below);
  Floats best{}, least_error{};
  for (int from = 0; from < kCandidates; from += kTogether) {
    Candidates candidates;
    for (int k = 0; k < kTogether; ++k) candidates.scales[k] = candidate<Type, kSigned>(reach, from + k);
    measure(batch, candidates);
    for (int k = 0; k < kTogether; ++k) {
      const Floats ratio = candidates.scales[k] * inverse;
      const Floats error = candidates.errors[k] * (ratio * ratio);
      const bool first = from + k == 0;
      best = first ? candidates.scales[k] : error < least_error ? candidates.scales[k] : best;
      least_error = first ? error : error < least_error ? error : least_error;
    }
  }
  return best;
}

template <class Type, int kGroup>
void store(const Int4Encode& job, int64_t first, const Words* words, Floats scales) {
  constexpr int kWords = kGroup / kPerWord;
  const int64_t present = job.groups - first < kLanes ? job.groups - first : kLanes;
  for (int64_t lane = 0; lane < present; ++lane) {
    uint32_t row[kWords];
    for (int word = 0; word < kWords; ++word) row[word] = words[word][lane];
    std::memcpy(job.words + (first + lane) * static_cast<int64_t>(sizeof row), row, sizeof row);
    const typename Type::Word scale = Type::narrow(scales[lane]);
    std::memcpy(job.scales + (first + lane) * static_cast<int64_t>(sizeof scale), &scale, sizeof scale);
  }
}

// kRounded: quotients are rounded to the storage type before they are rounded to integers, as arithmetic in it does.
template <class Type, int kGroup, bool kRounded>
void quantize(const Batch<kGroup>& batch, Floats scales, Words* words) {
  for (int word = 0; word < kGroup / kPerWord; ++word) {
    Words packed{};
    for (int i = 0; i < kPerWord; ++i) {
      const Floats quotient = batch.weights[word * kPerWord + i] / scales;
      const Floats value = clamped(kRounded ? Type::rounded(quotient) : quotient);
      // The lowest four bits of the sum are the number plus 8.
      packed |= ((Words)(value + (kUnits + 8.0f)) & 15u) << (4 * i);
    }
    words[word] = packed;
  }
}

template <class Type, int kGroup, TqInt4Scale kScale>
int64_t encode_groups(const Int4Encode& job) {
  Batch<kGroup> batch;
  Words words[kGroup / kPerWord];
  for (int64_t first = 0; first < job.groups; first += kLanes) {
    load<Type>(job, first, batch);
    const int refused = first_refused<Type>(batch);
    if (refused >= 0) return first + refused;
    Floats scales;
    if constexpr (kScale == TQ_INT4_ABSMAX) {
      const Reach reach = reach_of(batch);
      scales = absmax_scale<Type>(most(reach.above, reach.below));
    } else {
      scales = searched_scale<Type, kGroup, kScale == TQ_INT4_SIGNED>(batch);
    }
    quantize<Type, kGroup, kScale == TQ_INT4_ABSMAX>(batch, scales, words);
    store<Type, kGroup>(job, first, words, scales);
  }
  return -1;
}

template <class Type, int kGroup>
void decode_groups(const Int4Decode& job) {
  constexpr int kWords = kGroup / kPerWord;
  for (int64_t group = 0; group < job.groups; ++group) {
    uint32_t words[kWords];
    std::memcpy(words, job.words + group * static_cast<int64_t>(sizeof words), sizeof words);
    typename Type::Word stored;
    std::memcpy(&stored, job.scales + group * static_cast<int64_t>(sizeof stored), sizeof stored);
    const float scale = Type::widen(stored);
    float* weight = job.weight + group * kGroup;
    for (int word = 0; word < kWords; ++word) {
      for (int i = 0; i < kPerWord; ++i) {
        const int32_t number = static_cast<int32_t>((words[word] >> (4 * i)) & 15u) - 8;
        weight[word * kPerWord + i] = static_cast<float>(number) * scale;
      }
    }
  }
}

}  // namespace
}  // namespace tq
