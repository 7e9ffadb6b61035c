// Marks functions that g++ compiles for the CPU kernels and nvcc for the CUDA kernels: one source for the maths of
// both. With FASTRCNN_CUDA_EMULATOR defined, g++ compiles the CUDA kernels too, against a header that stands in for
// CUDA (to be included after those of torch).
#pragma once

#if defined(FASTRCNN_CUDA_EMULATOR)
#include "cuda_emulator.h"
#endif

#if defined(__CUDACC__) || defined(FASTRCNN_CUDA_EMULATOR)
#define HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// Always inlined, so that no copy compiled for a wide instruction set can be linked into code for a narrow one.
#define HOST_DEVICE inline __attribute__((always_inline))
#else
#define HOST_DEVICE inline
#endif
