// Steps 1 and 2 of NMS on CUDA (nms.cuh): the orders in which candidates are sorted. A thread owns one candidate.
#pragma once

#include "../common/sort.h"
#include "../math/score.h"
#include "nms_params.h"

namespace fastrcnn {

using Word = unsigned long long;
constexpr int kWordBits = 64;  // also the side of a tile of candidates

// Candidate `index` of all n; outside the arrays it must not be asked for.
template <typename T>
__device__ __forceinline__ bool is_valid(const NmsParams<T>& p, int64_t index) {
  return p.valid == nullptr || p.valid[index];
}

template <typename T>
struct WriteScoreKey {
  NmsParams<T> p;
  uint64_t* keys;
  int32_t* order;

  __device__ void operator()(int64_t i) const {
    keys[i] = is_valid(p, i) ? descending_key(static_cast<double>(p.scores[i])) : kAfterAllKeys;
    order[i] = static_cast<int32_t>(i);
  }
};

struct WriteImageKey {
  int64_t num_candidates;
  const int32_t* order;
  uint64_t* keys;

  __device__ void operator()(int64_t rank) const { keys[rank] = static_cast<uint64_t>(order[rank] / num_candidates); }
};

template <typename T>
struct WriteClassKey {
  NmsParams<T> p;
  const int32_t* order;
  uint64_t* keys;
  int32_t* ranks;

  __device__ void operator()(int64_t rank) const {
    const int64_t index = order[rank];
    const uint64_t low_bits = static_cast<uint64_t>(p.class_ids[index]) & ((uint64_t(1) << p.class_bits) - 1);
    keys[rank] = is_valid(p, index) ? low_bits : uint64_t(1) << p.class_bits;
    ranks[rank] = static_cast<int32_t>(rank);
  }
};

// The candidates in group order.
template <typename T>
struct Groups {
  int64_t n;
  Box<T>* boxes;     // [n]
  int32_t* images;   // [n]; -1: invalid
  int64_t* classes;  // [n] or null
  int32_t* ranks;    // [n] or null: the same as the position
  int class_bits;

  // Whether positions a and b can be in one segment; neighbours in group order for which this is true are.
  __device__ bool same_segment(int64_t a, int64_t b) const {
    if (images[a] != images[b]) return false;
    return classes == nullptr || ((classes[a] ^ classes[b]) & ((int64_t(1) << class_bits) - 1)) == 0;
  }
};

// What the scan finds out; all zero before it.
struct Decisions {
  Word* removed;  // [tiles]: who of a tile is suppressed by candidates of earlier ones
  bool* keep;     // [n], by rank
};

template <typename T>
struct WriteGroups {
  NmsParams<T> p;
  const int32_t* order;
  Groups<T> groups;
  Decisions decisions;

  __device__ void operator()(int64_t position) const {
    const int64_t index = order[groups.ranks != nullptr ? groups.ranks[position] : position];
    groups.boxes[position] = p.boxes[index];
    groups.images[position] = is_valid(p, index) ? static_cast<int32_t>(index / p.num_candidates) : -1;
    if (groups.classes != nullptr) groups.classes[position] = p.class_ids[index];
    decisions.keep[position] = false;
    if (position % kWordBits == 0) decisions.removed[position / kWordBits] = 0;
  }
};

inline int bits_below(int64_t count) {
  int bits = 0;
  while (bits < 63 && (int64_t(1) << bits) < count) ++bits;
  return bits;
}

// Step 1, over all n candidates; afterwards order.values is the index of each rank.
template <typename T>
void sort_by_rank(const NmsParams<T>& p, int64_t n, SortPairs& order, void* scratch, size_t scratch_bytes,
                  cudaStream_t stream) {
  for_each("nms (score keys)", n, WriteScoreKey<T>{p, order.keys, order.values}, stream);
  sort_pairs(order, n, sizeof(T) == 4 ? kFirstFloatKeyBit : 0, 64, scratch, scratch_bytes, stream);
  if (p.num_images == 1) return;
  for_each("nms (image keys)", n, WriteImageKey{p.num_candidates, order.values, order.keys}, stream);
  sort_pairs(order, n, 0, bits_below(p.num_images), scratch, scratch_bytes, stream);
}

// Step 2, with classes: afterwards by_class.values is the rank of each position.
template <typename T>
void sort_by_class(const NmsParams<T>& p, int64_t n, const int32_t* order, SortPairs& by_class, void* scratch,
                   size_t scratch_bytes, cudaStream_t stream) {
  for_each("nms (class keys)", n, WriteClassKey<T>{p, order, by_class.keys, by_class.values}, stream);
  sort_pairs(by_class, n, 0, p.class_bits + 1, scratch, scratch_bytes, stream);
}

}  // namespace fastrcnn
