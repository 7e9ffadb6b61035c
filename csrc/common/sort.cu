// Radix sort by CUB: least significant digit first, so stable; bitwise the same on every run.
#include "sort.h"

#include <cub/device/device_radix_sort.cuh>

namespace fastrcnn {

size_t sort_scratch_bytes(int64_t n) {
  size_t bytes = 0;
  cub::DoubleBuffer<uint64_t> keys;
  cub::DoubleBuffer<int32_t> values;
  check_cuda(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, values, n), "sort");
  return bytes;
}

void sort_pairs(SortPairs& pairs, int64_t n, int begin_bit, int end_bit, void* scratch, size_t scratch_bytes,
                cudaStream_t stream) {
  cub::DoubleBuffer<uint64_t> keys(pairs.keys, pairs.other_keys);
  cub::DoubleBuffer<int32_t> values(pairs.values, pairs.other_values);
  check_cuda(cub::DeviceRadixSort::SortPairs(scratch, scratch_bytes, keys, values, n, begin_bit, end_bit, stream),
             "sort");
  pairs = {keys.Current(), keys.Alternate(), values.Current(), values.Alternate()};
}

}  // namespace fastrcnn
