// Ranges of bins, and how the threads of a block share out bins and channels.
#pragma once

#include "launch.h"

namespace fastrcnn {

// The bins [first, last) along an axis.
struct BinRange {
  int first, last;
};

// Which bins and channels a thread of a block owns: of `lanes` groups of channels, those from `lane` on in steps of
// `stride`; of the bins, those from `first_bin` on in steps of `bin_stride`. Threads left over own none.
struct BinShare {
  int lane, stride, first_bin, bin_stride;

  __device__ BinShare(int64_t lanes, int bins) {
    stride = lanes < blockDim.x ? static_cast<int>(lanes) : static_cast<int>(blockDim.x);
    bin_stride = static_cast<int>(blockDim.x) / stride;
    lane = static_cast<int>(threadIdx.x) % stride;
    first_bin = static_cast<int>(threadIdx.x) / stride;
    if (first_bin >= bin_stride) first_bin = bins;
  }
};

}  // namespace fastrcnn
