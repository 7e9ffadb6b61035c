// A tensor as kernels see it that read any floating type.
#pragma once

#include "float_array.cuh"
#include "tensor.h"

namespace fastrcnn {

// `tensor`: of one of the four floating types (check_floating).
inline DeviceFloatArray device_float_array(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return {tensor.const_data_ptr(), FloatType::kDouble};
    case ScalarType::Half: return {tensor.const_data_ptr(), FloatType::kHalf};
    case ScalarType::BFloat16: return {tensor.const_data_ptr(), FloatType::kBFloat16};
    default: return {tensor.const_data_ptr(), FloatType::kFloat};
  }
}

}  // namespace fastrcnn
