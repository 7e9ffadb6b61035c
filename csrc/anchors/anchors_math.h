// The numbers of an anchor. Free of torch.
#pragma once

#include <cmath>
#include <cstdint>

#include "../math/box.h"

namespace fastrcnn {

// An anchor of the given area side and height / width ratio.
template <typename T>
HOST_DEVICE Box<T> base_anchor(T size, T scale, T ratio) {
  const T height_ratio = std::sqrt(ratio), width_ratio = T(1) / height_ratio;
  const T half_width = T(0.5) * (size * width_ratio * scale), half_height = T(0.5) * (size * height_ratio * scale);
  return {-half_width, -half_height, half_width, half_height};
}

// Anchor `index` of a level of the given width, in the order of grid_anchors.
template <typename T>
HOST_DEVICE Box<T> grid_anchor(const Box<T>* base, int64_t num_anchors, int64_t width, T stride, int64_t index) {
  const int64_t cell = index / num_anchors;
  const Box<T>& anchor = base[index % num_anchors];
  const T x = static_cast<T>(cell % width) * stride, y = static_cast<T>(cell / width) * stride;
  return {anchor.x1 + x, anchor.y1 + y, anchor.x2 + x, anchor.y2 + y};
}

}  // namespace fastrcnn
