// What the kernels of RoIAlign work on: the arguments as plain numbers, and where a RoI lies. Free of torch.
#pragma once

#include <cstdint>

#include "../math/roi.h"

namespace fastrcnn {

constexpr int kMaxLevels = 8;
constexpr int64_t kMaxBins = 1 << 15;     // per side
constexpr int64_t kMaxSamples = 1 << 16;  // per bin and side

// What a kernel needs beside the feature pointers. T is the type of coordinates.
template <typename T>
struct RoiAlignParams {
  const T* rois;  // [R, 5]
  int64_t num_rois;
  int64_t num_images;
  int64_t channels;
  int num_levels;
  int heights[kMaxLevels];  // cells
  int widths[kMaxLevels];
  T scales[kMaxLevels];  // cells per image pixel
  int pooled_height, pooled_width;
  int sampling_ratio;  // <= 0: adaptive
  bool aligned;
  T finest_scale;  // image pixels
};

// The level of RoI r, and its samples along y and x.
template <typename T>
struct RoiPlace {
  int64_t image;  // -1: padding
  int level;
  RoiAxis<T> y, x;
};

template <typename T>
HOST_DEVICE RoiPlace<T> roi_place(const RoiAlignParams<T>& p, int64_t r) {
  const T* roi = p.rois + r * 5;
  RoiPlace<T> place;
  place.image = roi[0] >= T(0) && roi[0] < static_cast<T>(p.num_images) ? static_cast<int64_t>(roi[0]) : -1;
  place.level = roi_level(roi[3] - roi[1], roi[4] - roi[2], p.finest_scale, p.num_levels);
  const T scale = p.scales[place.level];
  place.y = roi_axis(roi[2], roi[4], scale, p.pooled_height, p.heights[place.level], p.sampling_ratio, p.aligned);
  place.x = roi_axis(roi[1], roi[3], scale, p.pooled_width, p.widths[place.level], p.sampling_ratio, p.aligned);
  return place;
}

}  // namespace fastrcnn
