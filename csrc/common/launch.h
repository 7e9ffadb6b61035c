// Launching CUDA kernels: the one place that differs between nvcc and the emulator of the tests
// (FASTRCNN_CUDA_EMULATOR), which compiles the kernels with g++. Free of torch.
#pragma once

#include "host_device.h"

#if !defined(FASTRCNN_CUDA_EMULATOR)
#include <cuda_runtime.h>

// Declares T* name, the dynamic shared memory of a kernel, aligned to 16 bytes.
#define CU_DYNAMIC_SHARED(T, name)                            \
  extern __shared__ __align__(16) unsigned char name##_raw[]; \
  T* const name = reinterpret_cast<T*>(name##_raw)
#elif !defined(__grid_constant__)
#define __grid_constant__  // a parameter that may be indexed without a copy in local memory
#endif

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace fastrcnn {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xFFFFFFFFu;
constexpr size_t kSharedBytes = 48 << 10;  // of shared memory, static and dynamic, that every block may have

// Blocks that cover `items`.
HOST_DEVICE int64_t blocks_for(int64_t items, int64_t items_per_block) {
  return (items + items_per_block - 1) / items_per_block;
}

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": CUDA error: " + cudaGetErrorString(error));
}

// Launches kernel(args...) on a one-dimensional grid; `what` names it in error messages. There must be work to do.
template <typename... Parameters, typename... Arguments>
void launch(const char* what, void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes,
            cudaStream_t stream, const Arguments&... args) {
  if (blocks < 1 || blocks > INT32_MAX) {
    throw std::runtime_error(std::string(what) + ": expected a problem of 1 to 2147483647 blocks, got " +
                             std::to_string(blocks));
  }
#if defined(FASTRCNN_CUDA_EMULATOR)
  static_cast<void>(stream);
  ::cuda_emulator::launch_kernel(what, kernel, dim3(static_cast<unsigned>(blocks)),
                                 dim3(static_cast<unsigned>(threads)), shared_bytes, args...);
#else
  // clang-format off
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(args...);
  // clang-format on
  check_cuda(cudaGetLastError(), what);
#endif
}

inline void zero_async(const char* what, void* memory, size_t bytes, cudaStream_t stream) {
  check_cuda(cudaMemsetAsync(memory, 0, bytes, stream), what);
}

// A thread owns one item; items do not meet, so the result does not depend on any order.
template <typename Function>
__global__ void __launch_bounds__(256) for_each_kernel(int64_t n, Function function) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) function(i);
}

// Calls function(i) on the device for i in [0, n). Function: a struct with operator()(int64_t) const.
template <typename Function>
void for_each(const char* what, int64_t n, const Function& function, cudaStream_t stream) {
  if (n > 0) launch(what, &for_each_kernel<Function>, blocks_for(n, 256), 256, 0, stream, n, function);
}

}  // namespace fastrcnn
