// Sorting on the device: the seam around CUB. Free of torch and of CUB, so that including it is cheap and something
// else can be linked in its place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "launch.h"

namespace fastrcnn {

// The pairs to sort, and room for as many.
struct SortPairs {
  uint64_t* keys;
  uint64_t* other_keys;
  int32_t* values;
  int32_t* other_values;
};

// Bytes of scratch memory that sort_pairs needs for n pairs.
size_t sort_scratch_bytes(int64_t n);

// Sorts by the bits [begin_bit, end_bit) of the keys, ascending; pairs with equal bits keep their order. Afterwards the
// sorted pairs are in pairs.keys and pairs.values (the pointers may have been exchanged). Does not wait for the device.
void sort_pairs(SortPairs& pairs, int64_t n, int begin_bit, int end_bit, void* scratch, size_t scratch_bytes,
                cudaStream_t stream);

}  // namespace fastrcnn
