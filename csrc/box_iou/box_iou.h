// box_iou(a, b) -> [n, m]: the IoU of every pair (math/box.h: iou). a [n, 4], b [m, 4], both float32 or both float64.
#pragma once

#include "../common/tensor.h"
#include "../math/box.h"

namespace fastrcnn {

inline void check_box_iou(const Tensor& a, const Tensor& b) {
  check_shape(a, "a", "[n, 4]", {-1, 4});
  check_shape(b, "b", "[m, 4]", {-1, 4});
  check_coordinates(a, "a");
  check_dtype(b, "b", a.scalar_type());
  check_same_device(b, "b", a, "a");
}

}  // namespace fastrcnn
