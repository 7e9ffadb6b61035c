// RoIPool (Girshick 2015, Fast R-CNN, section 2.1): the maximum of each bin of a RoI rounded to whole cells.
//
//   roi_pool(features, rois, pooled_height, pooled_width, spatial_scale) -> (pooled, argmax), both
//                                                                       [R, C, pooled_height, pooled_width]
//   _roi_pool_backward(grad, rois, argmax, num_images, height, width, spatial_scale, channels_last, deterministic)
//                                                                       -> features' grad
//
// features [N, C, height, width] and rois [R, 5] as in roi_align.h. argmax, int32, channels-last: the cell y * width +
// x that a bin's maximum is from, the first in this order; -1: none.
#pragma once

#include "../common/rois.h"
#include "../roi_align/roi_align.h"
#include "roi_pool_params.h"

namespace fastrcnn {

template <typename T>
RoiPoolParams<T> roi_pool_params(const Tensor& rois, int64_t num_images, int64_t channels, int64_t height,
                                 int64_t width, int64_t pooled_height, int64_t pooled_width, double spatial_scale) {
  FASTRCNN_CHECK(pooled_height > 0 && pooled_width > 0 && pooled_height <= kMaxBins && pooled_width <= kMaxBins,
                 "output_size: expected 1 to ", kMaxBins, " bins per side, got ", pooled_height, " x ", pooled_width);
  check_positive<T>(spatial_scale, "spatial_scale");
  FASTRCNN_CHECK(height > 0 && width > 0, "features: expected at least one cell, got ", height, " x ", width);
  FASTRCNN_CHECK(height <= INT32_MAX / width, "features: expected at most 2147483647 cells, got ", height, " x ",
                 width);
  check_shape(rois, "rois", "[R, 5] (image index, x1, y1, x2, y2)", {-1, 5});
  return {rois.const_data_ptr<T>(),
          rois.size(0),
          num_images,
          channels,
          static_cast<int>(height),
          static_cast<int>(width),
          static_cast<T>(spatial_scale),
          static_cast<int>(pooled_height),
          static_cast<int>(pooled_width)};
}

// grad and argmax belong to the same bins.
inline void check_roi_pool_backward(const Tensor& grad, const Tensor& rois, const Tensor& argmax) {
  check_shape(grad, "grad", "[R, C, pooled height, pooled width]", {rois.size(0), -1, -1, -1});
  check_features({grad}, rois);
  check_shape(argmax, "argmax", "that of grad", {grad.size(0), grad.size(1), grad.size(2), grad.size(3)});
  check_dtype(argmax, "argmax", ScalarType::Int);
  check_same_device(argmax, "argmax", grad, "grad");
}

}  // namespace fastrcnn
