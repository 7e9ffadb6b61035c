// The numbers of a tensor of any floating type on the device, read as float32 where they lie: what FloatArray is on the
// CPU. Free of torch.
#pragma once

#include "pack.cuh"

namespace fastrcnn {

enum class FloatType { kFloat, kDouble, kHalf, kBFloat16 };

// Calls function.template operator()<type>(): loops inside it are compiled for each type.
template <typename Function>
__device__ __forceinline__ void with_float_type(FloatType type, const Function& function) {
  switch (type) {
    case FloatType::kFloat: function.template operator()<float>(); break;
    case FloatType::kDouble: function.template operator()<double>(); break;
    case FloatType::kHalf: function.template operator()<__half>(); break;
    case FloatType::kBFloat16: function.template operator()<__nv_bfloat16>(); break;
  }
}

struct DeviceFloatArray {
  const void* data;
  FloatType type;

  template <typename Feature>
  __device__ __forceinline__ float at(int64_t i) const {
    return static_cast<float>(to_sum(static_cast<const Feature*>(data)[i]));
  }

  // Where few numbers are read; the type is asked for each.
  __device__ __forceinline__ float operator[](int64_t i) const {
    switch (type) {
      case FloatType::kFloat: return at<float>(i);
      case FloatType::kDouble: return at<double>(i);
      case FloatType::kHalf: return at<__half>(i);
      default: return at<__nv_bfloat16>(i);
    }
  }
};

}  // namespace fastrcnn
