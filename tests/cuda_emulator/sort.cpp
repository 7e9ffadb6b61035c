// In place of csrc/common/sort.cu, which is CUB's: the same order from the standard library.
#include "common/sort.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace fastrcnn {

constexpr size_t kScratchBytes = 256;  // not used, but the kernels must bring as much as they were told

size_t sort_scratch_bytes(int64_t) { return kScratchBytes; }

void sort_pairs(SortPairs& pairs, int64_t n, int begin_bit, int end_bit, void* scratch, size_t scratch_bytes,
                cudaStream_t) {
  if (scratch == nullptr || scratch_bytes < kScratchBytes) {
    throw std::runtime_error("sort: expected 256 bytes of scratch memory, got " + std::to_string(scratch_bytes));
  }
  if (begin_bit < 0 || end_bit > 64 || begin_bit > end_bit) {
    throw std::runtime_error("sort: expected bits within [0, 64), got [" + std::to_string(begin_bit) + ", " +
                             std::to_string(end_bit) + ")");
  }
  const int bits = end_bit - begin_bit;
  const uint64_t mask = bits == 64 ? ~uint64_t(0) : ((uint64_t(1) << bits) - 1) << begin_bit;
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return (pairs.keys[a] & mask) < (pairs.keys[b] & mask); });
  for (int64_t i = 0; i < n; ++i) {
    pairs.other_keys[i] = pairs.keys[order[i]];
    pairs.other_values[i] = pairs.values[order[i]];
  }
  std::swap(pairs.keys, pairs.other_keys);
  std::swap(pairs.values, pairs.other_values);
}

}  // namespace fastrcnn
