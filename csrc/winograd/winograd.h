// 3x3 convolution, stride 1, zero padding 1, by Winograd's F(4x4, 3x3) (winograd_params.h); without gradients.
//
//   winograd_weights(weight) -> weights
//   conv3x3(x, weights, bias, out_channels, relu) -> [N, out_channels, height, width], channels-last
//
// weight [out_channels, channels, 3, 3]; weights [out_channels / 16 rounded up, 36, channels, 16]: G g G^T, of which
// number 6 i + j is the one for point i in y and point j in x; missing output channels are 0.
// x [N, channels, height, width], read in channels-last memory; bias [out_channels]. All float32.
#pragma once

#include "../common/tensor.h"
#include "winograd_params.h"

namespace fastrcnn {

inline void check_weight(const Tensor& weight) {
  check_shape(weight, "weight", "[out_channels, channels, 3, 3]", {-1, -1, 3, 3});
  check_dtype(weight, "weight", ScalarType::Float);
}

inline void check_conv3x3(const Tensor& x, const Tensor& weights, const std::optional<Tensor>& bias,
                          int64_t out_channels) {
  check_shape(x, "x", "[N, channels, height, width]", {-1, -1, -1, -1});
  check_dtype(x, "x", ScalarType::Float);
  FASTRCNN_CHECK(out_channels >= 0, "out_channels: expected at least 0, got ", out_channels);
  const int64_t panels = panels_of(out_channels);
  check_shape(weights, "weights",
              text("[", panels, ", 36, ", x.size(1), ", 16] (winograd_weights; of ", out_channels,
                   " output channels and the channels of x)")
                  .c_str(),
              {panels, kProducts, x.size(1), kPanel});
  check_dtype(weights, "weights", ScalarType::Float);
  check_same_device(weights, "weights", x, "x");
  if (!bias) return;
  check_shape(*bias, "bias", text("[", out_channels, "], one per output channel").c_str(), {out_channels});
  check_dtype(*bias, "bias", ScalarType::Float);
  check_same_device(*bias, "bias", x, "x");
}

}  // namespace fastrcnn
