// RoIAlign as a CUDA operator: layouts, allocation, launch. Does not wait for the device, so an image index that does
// not exist is not an error here: such a RoI pools to zero.
#include "roi_align.h"

#include "../common/current_stream.h"
#include "roi_align_gather.cuh"

namespace fastrcnn {
namespace {

template <typename Number>
FeatureMaps<Number> pointers_to(std::vector<Tensor>& maps) {
  FeatureMaps<Number> pointers{};
  for (size_t l = 0; l < maps.size(); ++l) pointers.maps[l] = static_cast<Number*>(maps[l].mutable_data_ptr());
  return pointers;
}

template <typename Feature>
Tensor roi_align_typed(const std::vector<Tensor>& features, const Tensor& rois,
                       const std::vector<double>& spatial_scales, int64_t pooled_height, int64_t pooled_width,
                       int64_t sampling_ratio, bool aligned, double finest_scale, cudaStream_t stream) {
  std::vector<Tensor> maps;
  std::vector<int64_t> heights, widths;
  for (const Tensor& level : features) {
    maps.push_back(to_channels_last(level));
    heights.push_back(level.size(2));
    widths.push_back(level.size(3));
  }
  const Tensor dense_rois = torch::stable::contiguous(rois);
  const auto p = roi_align_params<Sum<Feature>>(dense_rois, heights, widths, features[0].size(0), features[0].size(1),
                                                spatial_scales, pooled_height, pooled_width, sampling_ratio, aligned,
                                                finest_scale);
  FeatureMaps<const Feature> pointers{};
  for (size_t l = 0; l < maps.size(); ++l) pointers.maps[l] = static_cast<const Feature*>(maps[l].const_data_ptr());
  Tensor out = channels_last_tensor(features[0], {p.num_rois, p.channels, pooled_height, pooled_width},
                                    features[0].scalar_type());
  launch_roi_align(p, pointers, static_cast<Feature*>(out.mutable_data_ptr()), stream);
  return is_channels_last(features[0]) ? out : torch::stable::contiguous(out);
}

template <typename Feature>
std::vector<Tensor> roi_align_backward_typed(const Tensor& grad, const Tensor& rois,
                                             const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
                                             int64_t num_images, const std::vector<double>& spatial_scales,
                                             int64_t sampling_ratio, bool aligned, double finest_scale,
                                             bool channels_last, bool deterministic, cudaStream_t stream) {
  using T = Sum<Feature>;
  const Tensor dense_grad = to_channels_last(grad), dense_rois = torch::stable::contiguous(rois);
  const auto p = roi_align_params<T>(dense_rois, heights, widths, num_images, grad.size(1), spatial_scales,
                                     grad.size(2), grad.size(3), sampling_ratio, aligned, finest_scale);
  FASTRCNN_CHECK(grad.size(0) == p.num_rois, "grad: expected one entry per RoI (", p.num_rois, "), got ", grad.size(0));
  const auto* grads = static_cast<const Feature*>(dense_grad.const_data_ptr());
  // The gather writes every number once, in its final type; additions need zeros to start from, and the type of sums.
  const ScalarType dtype = grad.scalar_type();
  const bool sums_differ = !deterministic && sizeof(T) != sizeof(Feature);
  std::vector<Tensor> maps;
  for (int l = 0; l < p.num_levels; ++l) {
    maps.push_back(channels_last_tensor(grad, {num_images, p.channels, heights[l], widths[l]},
                                        sums_differ ? ScalarType::Float : dtype));
    if (!deterministic) torch::stable::zero_(maps.back());
  }
  if (deterministic) {
    Tensor scratch = new_tensor(grad, {roi_align_gather_scratch(p)}, ScalarType::Byte);
    launch_roi_align_gather(p, grads, pointers_to<Feature>(maps), scratch.mutable_data_ptr(), stream);
  } else {
    launch_roi_align_scatter(p, grads, pointers_to<T>(maps), stream);
  }
  for (Tensor& map : maps) {
    if (sums_differ) map = torch::stable::to(map, dtype);
    if (!channels_last) map = torch::stable::contiguous(map);
  }
  return maps;
}

Tensor multilevel_roi_align_cuda(std::vector<Tensor> features, Tensor rois, std::vector<double> spatial_scales,
                                 int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned,
                                 double finest_scale) {
  check_features(features, rois);
  const CurrentStream stream(features[0]);
  return dispatch_features<__half, __nv_bfloat16>(features[0].scalar_type(), [&]<typename Feature>() {
    return roi_align_typed<Feature>(features, rois, spatial_scales, pooled_height, pooled_width, sampling_ratio,
                                    aligned, finest_scale, stream);
  });
}

std::vector<Tensor> multilevel_roi_align_backward_cuda(Tensor grad, Tensor rois, std::vector<int64_t> level_heights,
                                                       std::vector<int64_t> level_widths, int64_t num_images,
                                                       std::vector<double> spatial_scales, int64_t sampling_ratio,
                                                       bool aligned, double finest_scale, bool channels_last,
                                                       bool deterministic) {
  check_shape(grad, "grad", "[R, C, pooled height, pooled width]", {-1, -1, -1, -1});
  check_features({grad}, rois);
  const CurrentStream stream(grad);
  return dispatch_features<__half, __nv_bfloat16>(grad.scalar_type(), [&]<typename Feature>() {
    return roi_align_backward_typed<Feature>(grad, rois, level_heights, level_widths, num_images, spatial_scales,
                                             sampling_ratio, aligned, finest_scale, channels_last, deterministic,
                                             stream);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CUDA, m) {
  m.impl("multilevel_roi_align", TORCH_BOX(&multilevel_roi_align_cuda));
  m.impl("_multilevel_roi_align_backward", TORCH_BOX(&multilevel_roi_align_backward_cuda));
}

}  // namespace fastrcnn
