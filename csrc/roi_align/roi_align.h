// RoIAlign over the levels of a feature pyramid; one level is the plain RoIAlign.
//
//   multilevel_roi_align(features, rois, spatial_scales, pooled_height, pooled_width, sampling_ratio, aligned,
//                        finest_scale) -> [R, C, pooled_height, pooled_width]
//   _multilevel_roi_align_backward(grad, rois, level_heights, level_widths, num_images, spatial_scales,
//                                  sampling_ratio, aligned, finest_scale, channels_last, deterministic) -> features'
//                                  grads
//
// features: L tensors [N, C, height, width], float32, float64, float16 or bfloat16, all NCHW or all channels-last; the
// result has the same type and layout. rois: [R, 5] = image index, x1, y1, x2, y2 in image pixels, float32 (float64 for
// float64 features). A RoI with image index -1 is padding: it pools to zero. Coordinates and sums are float32
// (float64).
#pragma once

#include "../common/rois.h"
#include "../common/tensor.h"
#include "roi_align_params.h"

namespace fastrcnn {

inline bool is_feature_type(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

// Shared by both passes and both devices; `heights`, `widths`: one per level.
template <typename T>
RoiAlignParams<T> roi_align_params(const Tensor& rois, const std::vector<int64_t>& heights,
                                   const std::vector<int64_t>& widths, int64_t num_images, int64_t channels,
                                   const std::vector<double>& spatial_scales, int64_t pooled_height,
                                   int64_t pooled_width, int64_t sampling_ratio, bool aligned, double finest_scale) {
  const size_t num_levels = spatial_scales.size();
  FASTRCNN_CHECK(num_levels >= 1 && num_levels <= kMaxLevels, "features: expected 1 to ", kMaxLevels, " levels, got ",
                 num_levels);
  FASTRCNN_CHECK(heights.size() == num_levels && widths.size() == num_levels,
                 "features and strides: expected one stride per level, got ", heights.size(), " levels and ",
                 num_levels, " strides");
  FASTRCNN_CHECK(pooled_height > 0 && pooled_width > 0 && pooled_height <= kMaxBins && pooled_width <= kMaxBins,
                 "output_size: expected 1 to ", kMaxBins, " bins per side, got ", pooled_height, " x ", pooled_width);
  FASTRCNN_CHECK(sampling_ratio <= kMaxSamples, "sampling_ratio: expected at most ", kMaxSamples, ", got ",
                 sampling_ratio);
  check_positive<T>(finest_scale, "finest_scale");
  check_shape(rois, "rois", "[R, 5] (image index, x1, y1, x2, y2)", {-1, 5});
  RoiAlignParams<T> p{};
  p.rois = rois.const_data_ptr<T>();
  p.num_rois = rois.size(0);
  p.num_images = num_images;
  p.channels = channels;
  p.num_levels = static_cast<int>(num_levels);
  for (size_t l = 0; l < num_levels; ++l) {
    check_positive<T>(spatial_scales[l], "spatial_scale");
    FASTRCNN_CHECK(heights[l] > 0 && widths[l] > 0, "features: expected levels of at least one cell, got ", heights[l],
                   " x ", widths[l]);
    p.heights[l] = static_cast<int>(heights[l]);
    p.widths[l] = static_cast<int>(widths[l]);
    p.scales[l] = static_cast<T>(spatial_scales[l]);
  }
  p.pooled_height = static_cast<int>(pooled_height);
  p.pooled_width = static_cast<int>(pooled_width);
  p.sampling_ratio = sampling_ratio > 0 ? static_cast<int>(sampling_ratio) : 0;
  p.aligned = aligned;
  p.finest_scale = static_cast<T>(finest_scale);
  return p;
}

// Features agree in type, device, images and channels, and rois have the coordinate type that goes with them.
inline void check_features(const std::vector<Tensor>& features, const Tensor& rois) {
  FASTRCNN_CHECK(!features.empty(), "features: expected at least one level, got none");
  const Tensor& first = features[0];
  FASTRCNN_CHECK(is_feature_type(first.scalar_type()),
                 "features: expected dtype float32, float64, float16 or bfloat16, got ",
                 dtype_name(first.scalar_type()));
  for (size_t l = 0; l < features.size(); ++l) {
    const Tensor& level = features[l];
    const std::string name = features.size() > 1 ? text("features[", l, "]") : "features";
    check_shape(level, name.c_str(), "[N, C, height, width]", {-1, -1, -1, -1});
    check_dtype(level, name.c_str(), first.scalar_type());
    check_same_device(level, name.c_str(), first, "features[0]");
    FASTRCNN_CHECK(level.size(0) == first.size(0) && level.size(1) == first.size(1), name,
                   ": expected the same N and C in every level, got ", shape_text(first), " and ", shape_text(level));
  }
  check_dtype(rois, "rois", first.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
  check_same_device(rois, "rois", first, "features");
}

}  // namespace fastrcnn
