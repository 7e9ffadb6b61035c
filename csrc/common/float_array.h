// The numbers of a tensor of any floating type, read as float32 where they lie.
#pragma once

#include <cstring>

#include "../simd/widen.h"
#include "tensor.h"

namespace fastrcnn {

inline void check_floating(const Tensor& tensor, const char* name) {
  const ScalarType dtype = tensor.scalar_type();
  FASTRCNN_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                     dtype == ScalarType::BFloat16,
                 name, ": expected dtype float32, float64, float16 or bfloat16, got ", dtype_name(dtype));
}

class FloatArray {
 public:
  FloatArray() = default;
  explicit FloatArray(const Tensor& tensor) : data_(tensor.const_data_ptr()), dtype_(tensor.scalar_type()) {}

  float operator[](int64_t i) const {
    switch (dtype_) {
      case ScalarType::Float: return at<float>(i);
      case ScalarType::Double: return static_cast<float>(at<double>(i));
      case ScalarType::Half: return static_cast<float>(at<torch::headeronly::Half>(i));
      default: return static_cast<float>(at<torch::headeronly::BFloat16>(i));
    }
  }

  // n numbers from `first` on, `stride` apart: where they lie if they can be used so, else copied to `buffer`.
  const float* row(int64_t first, int64_t stride, int64_t n, float* buffer) const {
    if (stride == 1 && dtype_ == ScalarType::Float) return &at<float>(first);
    if (stride == 1 && dtype_ == ScalarType::Half) {
      FASTRCNN_SIMD(widen, &at<torch::headeronly::Half>(first), n, buffer);
    } else if (stride == 1 && dtype_ == ScalarType::BFloat16) {
      FASTRCNN_SIMD(widen, &at<torch::headeronly::BFloat16>(first), n, buffer);
    } else {
      for (int64_t i = 0; i < n; ++i) buffer[i] = (*this)[first + i * stride];
    }
    return buffer;
  }

 private:
  template <typename T>
  const T& at(int64_t i) const {
    return static_cast<const T*>(data_)[i];
  }

  const void* data_ = nullptr;
  ScalarType dtype_ = ScalarType::Float;
};

inline FloatArray float_array(const Tensor& tensor) { return FloatArray(tensor); }

}  // namespace fastrcnn
