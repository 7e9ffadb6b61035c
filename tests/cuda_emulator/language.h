// The words of CUDA C++ that g++ does not know: qualifiers, vector types, and the indices of a thread.
#pragma once

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__ __restrict

// Blocks run one after another, so shared memory can be static. As thread-local variables, which nothing else is here,
// all of it lies in one piece, even where templates declare it: the race detector can tell it from global memory, and
// before each block it is filled with 0xFF (NaN, -1), so that what a kernel forgot to initialise is seen.
// AddressSanitizer puts its guards around ordinary variables only.
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

// As in csrc/common/launch.h.
#define CU_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::cuda_emulator::dynamic_shared())

// Aligned as in CUDA, so that UndefinedBehaviorSanitizer finds misaligned vector loads.
#define CUDA_EMULATOR_VECTORS(T, name, align2, align4)               \
  struct alignas(align2) name##2 { T x, y; };                        \
  struct name##3 { T x, y, z; };                                     \
  struct alignas(align4) name##4 { T x, y, z, w; };                  \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDA_EMULATOR_VECTORS(float, float, 8, 16)
CUDA_EMULATOR_VECTORS(double, double, 16, 16)
CUDA_EMULATOR_VECTORS(int, int, 8, 16)
CUDA_EMULATOR_VECTORS(unsigned, uint, 8, 16)
CUDA_EMULATOR_VECTORS(unsigned char, uchar, 2, 4)
CUDA_EMULATOR_VECTORS(unsigned short, ushort, 4, 8)
CUDA_EMULATOR_VECTORS(long long, longlong, 16, 16)
CUDA_EMULATOR_VECTORS(unsigned long long, ulonglong, 16, 16)
#undef CUDA_EMULATOR_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern uint3 threadIdx, blockIdx;  // of the thread that runs now (scheduler.cpp)
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;
