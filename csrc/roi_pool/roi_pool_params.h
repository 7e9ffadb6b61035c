// What the kernels of RoIPool work on: the arguments as plain numbers, and which cells a bin covers. Free of torch.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/host_device.h"

namespace fastrcnn {

// T is the type of coordinates.
template <typename T>
struct RoiPoolParams {
  const T* rois;  // [R, 5]
  int64_t num_rois;
  int64_t num_images;
  int64_t channels;
  int height, width;  // cells
  T scale;            // cells per image pixel
  int pooled_height, pooled_width;
};

// One RoI along one axis, in whole cells.
template <typename T>
struct PoolAxis {
  int64_t start;
  T bin;      // cells per bin
  int cells;  // of the feature map
};

// The nearest whole cell, halves away from zero; limited, so that cells can be counted in integers.
template <typename T>
HOST_DEVICE int64_t nearest_cell(T position) {
  const T limit = T(1 << 30), cell = std::round(position);
  return static_cast<int64_t>(cell < -limit ? -limit : (cell > limit ? limit : cell));
}

// `low`, `high`: the RoI's edges in image pixels, both of which it includes; at least one cell.
template <typename T>
HOST_DEVICE PoolAxis<T> pool_axis(T low, T high, T scale, int bins, int cells) {
  const int64_t start = nearest_cell(low * scale), size = nearest_cell(high * scale) - start + 1;
  return {start, static_cast<T>(size > 1 ? size : 1) / static_cast<T>(bins), cells};
}

// The cells [first, last) inside the map.
struct CellRange {
  int first, last;
};

HOST_DEVICE int clamp_cell(int64_t cell, int cells) {
  return static_cast<int>(cell < 0 ? 0 : (cell > cells ? cells : cell));
}

// The cells that bin p touches; neighbouring bins share a cell where a bin is no whole number of cells.
template <typename T>
HOST_DEVICE CellRange bin_cells(const PoolAxis<T>& axis, int p) {
  const int64_t first = static_cast<int64_t>(std::floor(static_cast<T>(p) * axis.bin));
  const int64_t last = static_cast<int64_t>(std::ceil(static_cast<T>(p + 1) * axis.bin));
  return {clamp_cell(axis.start + first, axis.cells), clamp_cell(axis.start + last, axis.cells)};
}

// Where RoI r lies.
template <typename T>
struct PoolPlace {
  int64_t image;  // -1: padding, an image that does not exist, or a coordinate that is no finite number
  PoolAxis<T> y, x;
};

template <typename T>
HOST_DEVICE PoolPlace<T> pool_place(const RoiPoolParams<T>& p, int64_t r) {
  const T* roi = p.rois + r * 5;
  const T not_finite = (roi[1] - roi[1]) + (roi[2] - roi[2]) + (roi[3] - roi[3]) + (roi[4] - roi[4]);  // else 0
  if (!(not_finite == T(0) && roi[0] >= T(0) && roi[0] < static_cast<T>(p.num_images))) return {-1, {}, {}};
  return {static_cast<int64_t>(roi[0]), pool_axis(roi[2], roi[4], p.scale, p.pooled_height, p.height),
          pool_axis(roi[1], roi[3], p.scale, p.pooled_width, p.width)};
}

// What a maximum starts with: a cell must be greater to be found, so NaN never is. The lowest float32 for every type.
template <typename T>
HOST_DEVICE constexpr T lowest_feature() {
  return T(-3.40282346638528859812e+38);
}

}  // namespace fastrcnn
