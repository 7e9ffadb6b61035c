// RoIPool as a CUDA operator: layouts, allocation, launch. Does not wait for the device, so an image index that does
// not exist is not an error here: such a RoI pools to zero.
#include "roi_pool.h"

#include "../common/current_stream.h"
#include "roi_pool.cuh"

namespace fastrcnn {
namespace {

std::tuple<Tensor, Tensor> roi_pool_cuda(Tensor features, Tensor rois, int64_t pooled_height, int64_t pooled_width,
                                         double spatial_scale) {
  check_features({features}, rois);
  const CurrentStream stream(features);
  rois = torch::stable::contiguous(rois);
  const Tensor maps = to_channels_last(features);
  const ScalarType dtype = features.scalar_type();
  return dispatch_features<__half, __nv_bfloat16>(dtype, [&]<typename Feature>() -> std::tuple<Tensor, Tensor> {
    const auto p = roi_pool_params<Sum<Feature>>(rois, features.size(0), features.size(1), features.size(2),
                                                 features.size(3), pooled_height, pooled_width, spatial_scale);
    const std::vector<int64_t> shape{p.num_rois, p.channels, pooled_height, pooled_width};
    Tensor out = channels_last_tensor(features, shape, dtype);
    Tensor argmax = channels_last_tensor(features, shape, ScalarType::Int);
    launch_roi_pool(p, static_cast<const Feature*>(maps.const_data_ptr()),
                    static_cast<Feature*>(out.mutable_data_ptr()), argmax.template mutable_data_ptr<int32_t>(), stream);
    return {is_channels_last(features) ? out : torch::stable::contiguous(out), argmax};
  });
}

Tensor roi_pool_backward_cuda(Tensor grad, Tensor rois, Tensor argmax, int64_t num_images, int64_t height,
                              int64_t width, double spatial_scale, bool channels_last, bool deterministic) {
  check_roi_pool_backward(grad, rois, argmax);
  const CurrentStream stream(grad);
  grad = to_channels_last(grad);
  argmax = to_channels_last(argmax);
  rois = torch::stable::contiguous(rois);
  const ScalarType dtype = grad.scalar_type();
  return dispatch_features<__half, __nv_bfloat16>(dtype, [&]<typename Feature>() -> Tensor {
    using T = Sum<Feature>;
    const auto p =
        roi_pool_params<T>(rois, num_images, grad.size(1), height, width, grad.size(2), grad.size(3), spatial_scale);
    const ScalarType sum_type = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    Tensor sums = channels_last_tensor(grad, {num_images, p.channels, height, width}, sum_type);
    const auto* grads = static_cast<const Feature*>(grad.const_data_ptr());
    const int32_t* where = argmax.template const_data_ptr<int32_t>();
    if (deterministic) {
      launch_roi_pool_gather(p, grads, where, sums.template mutable_data_ptr<T>(), stream);
    } else {
      torch::stable::zero_(sums);
      launch_roi_pool_scatter(p, grads, where, sums.template mutable_data_ptr<T>(), stream);
    }
    if (dtype != sum_type) sums = torch::stable::to(sums, dtype);
    return channels_last ? sums : torch::stable::contiguous(sums);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CUDA, m) {
  m.impl("roi_pool", TORCH_BOX(&roi_pool_cuda));
  m.impl("_roi_pool_backward", TORCH_BOX(&roi_pool_backward_cuda));
}

}  // namespace fastrcnn
