// Anchors: the boxes that the RPN's deltas are relative to, the same around every cell.
//
//   base_anchors(size, scales, ratios) -> [A, 4]: around the origin, ratio-major: a = ratio * number of scales + scale
//   grid_anchors(base_anchors, height, width, stride) -> [height * width * A, 4]: order y, x, anchor; cell (y, x) has
//   its centre at (x * stride, y * stride), not half a stride further (mmdetection's centre offset 0).
#pragma once

#include "../common/tensor.h"
#include "anchors_math.h"

namespace fastrcnn {

inline void check_grid_anchors(const Tensor& base_anchors, int64_t height, int64_t width, double stride) {
  check_shape(base_anchors, "base_anchors", "[A, 4]", {-1, 4});
  check_coordinates(base_anchors, "base_anchors");
  FASTRCNN_CHECK(height >= 0 && width >= 0, "feature_sizes: expected sizes of 0 or more cells, got ", height, " x ",
                 width);
  check_positive<float>(stride, "strides", "positive numbers");
}

}  // namespace fastrcnn
