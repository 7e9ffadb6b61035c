// What the threads of a block find out together. Every thread of the block must call these.
#pragma once

#include "launch.h"

namespace fastrcnn {

// The number of threads before this one whose flag is set, and of all such threads.
struct BlockRank {
  int rank, total;
};

template <int threads>
__device__ __forceinline__ BlockRank block_rank(bool flag) {
  __shared__ int counts[threads / kWarpSize];
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const unsigned flags = __ballot_sync(kFullWarp, flag);
  __syncthreads();  // the counts of an earlier call have been read
  if (lane == 0) counts[warp] = __popc(flags);
  __syncthreads();
  BlockRank result{__popc(flags & ((1u << lane) - 1)), 0};
  for (int w = 0; w < threads / kWarpSize; ++w) {
    if (w < warp) result.rank += counts[w];
    result.total += counts[w];
  }
  return result;
}

// The sum of the values of the threads before this one, and of all.
struct BlockPrefix {
  int before, total;
};

template <int threads>
__device__ __forceinline__ BlockPrefix block_prefix(int value) {
  __shared__ int sums[threads / kWarpSize];
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  int through = value;  // the sum within the warp up to and including this thread
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const int other = __shfl_up_sync(kFullWarp, through, distance);
    if (lane >= distance) through += other;
  }
  __syncthreads();  // the sums of an earlier call have been read
  if (lane == kWarpSize - 1) sums[warp] = through;
  __syncthreads();
  BlockPrefix result{through - value, 0};
  for (int w = 0; w < threads / kWarpSize; ++w) {
    if (w < warp) result.before += sums[w];
    result.total += sums[w];
  }
  return result;
}

// The flags of the block's first 64 threads as bits.
__device__ __forceinline__ unsigned long long block_bits64(bool flag) {
  __shared__ unsigned halves[2];
  const unsigned flags = __ballot_sync(kFullWarp, flag);
  __syncthreads();
  if (threadIdx.x < 64 && threadIdx.x % kWarpSize == 0) halves[threadIdx.x / kWarpSize] = flags;
  __syncthreads();
  return static_cast<unsigned long long>(halves[1]) << 32 | halves[0];
}

}  // namespace fastrcnn
