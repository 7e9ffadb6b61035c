// Small kernels with one bug each, and the same without it: what the emulator must find, and must not. The host calls
// run_planted(name, size, data, error).
#include <cstdio>
#include <cstring>
#include <string>

#include "common/launch.h"

#if !defined(FASTRCNN_CUDA_EMULATOR)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

using fastrcnn::launch;

namespace {

constexpr int kThreads = 128;

// --- right -----------------------------------------------------------------------------------------------------------

// Everything at once: barriers, shuffles, votes, atomics, static and dynamic shared memory, a tile that is not full.
__global__ void right(int n, float* data) {
  CU_DYNAMIC_SHARED(float, reversed);
  __shared__ float tile[kThreads];
  const int i = blockIdx.x * kThreads + threadIdx.x;
  tile[threadIdx.x] = i < n ? data[i] : 0.0f;
  __syncthreads();
  reversed[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
  __syncthreads();
  float sum = reversed[kThreads - 1 - threadIdx.x];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  const unsigned odd = __ballot_sync(~0u, threadIdx.x & 1);
  __shared__ int warps;
  if (threadIdx.x == 0) warps = 0;
  __syncthreads();
  if (threadIdx.x % 32 == 0) atomicAdd(&warps, __popc(odd) == 16 ? 1 : 100);
  __syncthreads();
  if (i < n) data[i] += sum * 0.0f + static_cast<float>(warps);
}

// Lanes of a warp hand over through shared memory.
template <bool synchronised>
__global__ void through_warp(int n, float* data) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = data[threadIdx.x];
  if (synchronised) __syncwarp();
  const float neighbour = tile[threadIdx.x ^ 1];
  if (static_cast<int>(threadIdx.x) < n) data[threadIdx.x] = neighbour;
}

// --- barriers --------------------------------------------------------------------------------------------------------

__global__ void missing_barrier(int, float* data) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = data[threadIdx.x];
  data[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

// The tile is filled again before everybody has read it.
__global__ void missing_barrier_in_loop(int, float* data) {
  __shared__ float tile[kThreads];
  float sum = 0.0f;
  for (int turn = 0; turn < 3; ++turn) {
    tile[threadIdx.x] = data[threadIdx.x] + static_cast<float>(turn);
    __syncthreads();
    sum += tile[(threadIdx.x + 1) % kThreads];
  }
  data[threadIdx.x] = sum;
}

__global__ void divergent_barrier(int, float* data) {
  if (threadIdx.x < 64) {
    data[threadIdx.x] = 1.0f;
    __syncthreads();
  } else {
    data[threadIdx.x] = 2.0f;
    __syncthreads();
  }
}

__global__ void exit_before_barrier(int n, float* data) {
  if (static_cast<int>(threadIdx.x) >= n) return;
  data[threadIdx.x] = 1.0f;
  __syncthreads();
}

__global__ void barrier_in_one_warp(int, float* data) {
  if (threadIdx.x < 32) __syncthreads();
  data[threadIdx.x] = static_cast<float>(__ballot_sync(~0u, 1));
  __syncwarp();
  if (threadIdx.x >= 32) __syncthreads();
  __syncthreads();
}

// --- warps -----------------------------------------------------------------------------------------------------------

__global__ void full_mask_in_a_branch(int, float* data) {
  if (threadIdx.x & 1) data[threadIdx.x] = __shfl_sync(~0u, data[threadIdx.x], 1);
}

__global__ void lane_not_in_mask(int, float* data) {
  data[threadIdx.x] = __shfl_sync(0x0000FFFFu, data[threadIdx.x], 0);
}

__global__ void source_not_in_mask(int, float* data) {
  if (threadIdx.x % 32 < 16) data[threadIdx.x] = __shfl_sync(0x0000FFFFu, data[threadIdx.x], 20);
}

// --- memory ----------------------------------------------------------------------------------------------------------

__global__ void past_static_shared(int n, float* data) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x + (n > 0)] = 1.0f;
  __syncthreads();
  data[threadIdx.x] = tile[threadIdx.x];
}

__global__ void past_dynamic_shared(int n, float* data) {
  CU_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x + (n > 0)] = 1.0f;
  __syncthreads();
  data[threadIdx.x] = tile[threadIdx.x];
}

__global__ void past_global(int n, float* data) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i <= n) data[i] = 1.0f;
}

__global__ void misaligned_vector(int, float* data) {
  const float4 four = *reinterpret_cast<const float4*>(data + 1);
  data[threadIdx.x] = four.x;
}

// Element 0 is never written.
__global__ void uninitialised_shared(int, float* data) {
  __shared__ float tile[kThreads];
  if (threadIdx.x > 0) tile[threadIdx.x] = 1.0f;
  __syncthreads();
  data[threadIdx.x] = tile[threadIdx.x];
}

// --- races in global memory ------------------------------------------------------------------------------------------

__global__ void race_between_blocks(int, float* data) {
  if (threadIdx.x == 0) data[0] += 1.0f;
}

__global__ void race_within_block(int, float* data) { data[threadIdx.x % 4] += 1.0f; }

__global__ void atomic_and_plain(int, float* data) {
  if (threadIdx.x == 0) {
    data[0] = 1.0f;
  } else {
    atomicAdd(&data[0], 1.0f);
  }
}

// --- the edge of a tile ----------------------------------------------------------------------------------------------

// data[i] = the sum of all; the tile's last element is forgotten when the tile is full.
template <int missing>
__global__ void tile_sum(int n, float* data) {
  __shared__ float tile[kThreads];
  float sum = 0.0f;
  for (int first = 0; first < n; first += kThreads) {
    __syncthreads();
    if (first + static_cast<int>(threadIdx.x) < n) tile[threadIdx.x] = data[first + threadIdx.x];
    __syncthreads();
    const int count = n - first < kThreads ? n - first : kThreads - missing;
    for (int i = 0; i < count; ++i) sum += tile[i];
  }
  if (threadIdx.x == 0) data[n] = sum;
}

struct Planted {
  const char* name;
  void (*kernel)(int, float*);
  int blocks;
  size_t shared_bytes;
};

#define PLANTED(kernel) {#kernel, &kernel, 1, kThreads * sizeof(float)}
const Planted kPlanted[] = {
    {"right", &right, 3, kThreads * sizeof(float)},
    {"synchronised_warp", &through_warp<true>, 1, 0},
    {"missing_syncwarp", &through_warp<false>, 1, 0},
    PLANTED(missing_barrier),
    PLANTED(missing_barrier_in_loop),
    PLANTED(divergent_barrier),
    PLANTED(exit_before_barrier),
    PLANTED(barrier_in_one_warp),
    PLANTED(full_mask_in_a_branch),
    PLANTED(lane_not_in_mask),
    PLANTED(source_not_in_mask),
    PLANTED(past_static_shared),
    PLANTED(past_dynamic_shared),
    PLANTED(past_global),
    PLANTED(misaligned_vector),
    PLANTED(uninitialised_shared),
    {"race_between_blocks", &race_between_blocks, 2, 0},
    PLANTED(race_within_block),
    PLANTED(atomic_and_plain),
    {"tile_sum", &tile_sum<0>, 1, 0},
    {"tile_edge", &tile_sum<1>, 1, 0},
};

}  // namespace

// Runs the kernel of this name on n numbers; error: room for 4096 characters, empty where all was well.
extern "C" __attribute__((visibility("default"))) void run_planted(const char* name, int n, float* data, char* error) {
  *error = 0;
  try {
    for (const Planted& planted : kPlanted) {
      if (planted.name != std::string(name)) continue;
      launch(name, planted.kernel, planted.blocks, kThreads, planted.shared_bytes, nullptr, n, data);
      return;
    }
    throw std::runtime_error(std::string("no planted kernel ") + name);
  } catch (const std::exception& e) {
    std::snprintf(error, 4096, "%s", e.what());
  }
}

// __float2half_rn and __half2float, __float2bfloat16_rn and __bfloat162float, of n numbers.
extern "C" __attribute__((visibility("default"))) void round_trip(int64_t n, const float* from, uint16_t* half_bits,
                                                                  uint16_t* bfloat_bits, float* half, float* bfloat) {
  for (int64_t i = 0; i < n; ++i) {
    const __half as_half = __float2half_rn(from[i]);
    const __nv_bfloat16 as_bfloat = __float2bfloat16_rn(from[i]);
    std::memcpy(&half_bits[i], &as_half, 2);
    std::memcpy(&bfloat_bits[i], &as_bfloat, 2);
    half[i] = __half2float(as_half);
    bfloat[i] = __bfloat162float(as_bfloat);
  }
}
