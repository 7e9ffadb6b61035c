// Stands in for CUDA's headers when g++ compiles the kernels (FASTRCNN_CUDA_EMULATOR). See README.md. To be included
// after the headers of torch, because of the names of CUDA C++ that it makes macros of.
#pragma once

#include <cstring>

#include "half.h"
#include "intrinsics.h"
#include "language.h"
#include "launch_kernel.h"
#include "scheduler.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

// What host code uses of the runtime: everything is done when a call returns.
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t = nullptr) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

namespace cuda_emulator {

// AddressSanitizer reports who touches these bytes, until the memory that they are part of is freed.
inline void guard([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(memory, bytes);
#endif
}

}  // namespace cuda_emulator
