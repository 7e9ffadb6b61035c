// 3x3 convolution, stride 1, zero padding 1, by Winograd's F(4x4, 3x3) (winograd_params.h); without gradients.
//
//   conv3x3(x, weight, bias, relu) -> [N, out_channels, height, width], channels-last
//
// x [N, channels, height, width], read in channels-last memory; weight [out_channels, channels, 3, 3]; bias
// [out_channels]. All float32.
#pragma once

#include "../common/tensor.h"
#include "winograd_params.h"

namespace fastrcnn {

inline void check_conv3x3(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_shape(x, "x", "[N, channels, height, width]", {-1, -1, -1, -1});
  check_dtype(x, "x", ScalarType::Float);
  check_shape(weight, "weight",
              text("[out_channels, ", x.size(1), ", 3, 3] (", x.size(1), " channels as in x)").c_str(),
              {-1, x.size(1), 3, 3});
  check_dtype(weight, "weight", ScalarType::Float);
  check_same_device(weight, "weight", x, "x");
  if (!bias) return;
  check_shape(*bias, "bias", text("[", weight.size(0), "], one per output channel").c_str(), {weight.size(0)});
  check_dtype(*bias, "bias", ScalarType::Float);
  check_same_device(*bias, "bias", x, "x");
}

}  // namespace fastrcnn
