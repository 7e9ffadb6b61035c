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

// A base anchor in the cell of column x and row y.
template <typename T>
HOST_DEVICE Box<T> anchor_of_cell(const Box<T>& base, int64_t x, int64_t y, T stride) {
  const T dx = static_cast<T>(x) * stride, dy = static_cast<T>(y) * stride;
  return {base.x1 + dx, base.y1 + dy, base.x2 + dx, base.y2 + dy};
}

// Anchor `index` of a level of the given width, in the order of grid_anchors.
template <typename T>
HOST_DEVICE Box<T> grid_anchor(const Box<T>* base, int64_t num_anchors, int64_t width, T stride, int64_t index) {
  const int64_t cell = index / num_anchors;
  return anchor_of_cell(base[index % num_anchors], cell % width, cell / width, stride);
}

}  // namespace fastrcnn
