// Several consecutive features at once, of any type, and their conversion to and from the type of sums.
#pragma once

#include "launch.h"

#if !defined(FASTRCNN_CUDA_EMULATOR)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fastrcnn {

// Aligned to its size, so that it is loaded and stored by one instruction (up to 16 bytes).
template <typename Feature, int count>
struct alignas(sizeof(Feature) * count) Pack {
  Feature values[count];
};

// As many as 16 bytes hold.
template <typename Feature>
constexpr int kPackSize = 16 / sizeof(Feature);

inline bool is_pack_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// The type that features are summed in.
template <typename Feature>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <typename Feature>
using Sum = typename SumOf<Feature>::type;

__device__ __forceinline__ float to_sum(float value) { return value; }
__device__ __forceinline__ double to_sum(double value) { return value; }
__device__ __forceinline__ float to_sum(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_sum(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void from_sum(float sum, float& value) { value = sum; }
__device__ __forceinline__ void from_sum(double sum, double& value) { value = sum; }
__device__ __forceinline__ void from_sum(float sum, __half& value) { value = __float2half_rn(sum); }
__device__ __forceinline__ void from_sum(float sum, __nv_bfloat16& value) { value = __float2bfloat16_rn(sum); }

// *where += values, each number by an atomic addition; four floats are one instruction where there is one.
template <typename T, int count>
__device__ __forceinline__ void atomic_add(Pack<T, count>* where, const Pack<T, count>& values) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (sizeof(T) == 4 && count == 4) {
    atomicAdd(reinterpret_cast<float4*>(where),
              make_float4(values.values[0], values.values[1], values.values[2], values.values[3]));
  } else
#endif
  {
    for (int i = 0; i < count; ++i) atomicAdd(&where->values[i], values.values[i]);
  }
}

}  // namespace fastrcnn
