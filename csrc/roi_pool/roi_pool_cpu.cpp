// RoIPool on the CPU, channels-last, vectorised over channels (roi_pool_simd.inl).
//
// Forward: threads own RoIs. The ranges of cells of a RoI's bins are computed once per axis.
// Backward: each bin's gradient goes to the cell that its maximum is from. Threads own disjoint slices of the channels
// and visit all bins in the same order, so no two threads write one number, and the sums do not depend on the number of
// threads.
#include "roi_pool.h"

#include <algorithm>

#include "roi_pool_simd.h"

namespace fastrcnn {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kRoisPerThread = 8;  // below this a second thread costs more than it saves

template <typename T>
std::vector<CellRange> cells_of_bins(const PoolAxis<T>& axis, int bins) {
  std::vector<CellRange> ranges;
  for (int p = 0; p < bins; ++p) ranges.push_back(bin_cells(axis, p));
  return ranges;
}

// features: [N, height, width, C]; out, argmax: [R, pooled_height, pooled_width, C].
template <typename Feature, typename T>
void forward(const RoiPoolParams<T>& p, const Feature* features, Feature* out, int32_t* argmax) {
  const int64_t roi_size = p.pooled_height * p.pooled_width * p.channels;
  torch::stable::parallel_for(0, p.num_rois, kRoisPerThread, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const PoolPlace<T> place = pool_place(p, r);
      Feature* bin = out + r * roi_size;
      int32_t* where = argmax + r * roi_size;
      if (place.image < 0) {
        std::fill(bin, bin + roi_size, Feature(0));
        std::fill(where, where + roi_size, -1);
        continue;
      }
      const Feature* map = features + place.image * p.height * p.width * p.channels;
      const std::vector<CellRange> rows = cells_of_bins(place.y, p.pooled_height);
      const std::vector<CellRange> columns = cells_of_bins(place.x, p.pooled_width);
      for (const CellRange& y : rows) {
        for (const CellRange& x : columns) {
          FASTRCNN_SIMD(max_of_cells, y, x, map, p.width, p.channels, bin, where);
          if (y.first >= y.last || x.first >= x.last) std::fill(bin, bin + p.channels, Feature(0));
          bin += p.channels;
          where += p.channels;
        }
      }
    }
  });
}

// grad, argmax: [R, pooled_height, pooled_width, C]; sums: [N, height, width, C], zero on entry.
template <typename Feature, typename T>
void backward(const RoiPoolParams<T>& p, const Feature* grad, const int32_t* argmax, T* sums) {
  constexpr int64_t slice = 16;  // channels: a cache line of float32, so that threads do not share lines
  const int64_t bins = static_cast<int64_t>(p.pooled_height) * p.pooled_width;
  torch::stable::parallel_for(0, (p.channels + slice - 1) / slice, 1, [&](int64_t first, int64_t last) {
    const int64_t c0 = first * slice, c1 = std::min(last * slice, p.channels);
    for (int64_t r = 0; r < p.num_rois; ++r) {
      const int64_t image = pool_place(p, r).image;
      if (image < 0) continue;
      T* map = sums + image * p.height * p.width * p.channels;
      for (int64_t i = r * bins * p.channels; i < (r + 1) * bins * p.channels; i += p.channels) {
        for (int64_t c = c0; c < c1; ++c) {
          if (argmax[i + c] >= 0) map[argmax[i + c] * p.channels + c] += static_cast<T>(grad[i + c]);
        }
      }
    }
  });
}

std::tuple<Tensor, Tensor> roi_pool_cpu(Tensor features, Tensor rois, int64_t pooled_height, int64_t pooled_width,
                                        double spatial_scale) {
  simd_level();  // a wrong FASTRCNN_SIMD is reported here and not from within a thread
  check_features({features}, rois);
  rois = torch::stable::contiguous(rois);
  const Tensor maps = to_channels_last(features);
  const ScalarType dtype = features.scalar_type();
  return dispatch_features<Half, BFloat16>(dtype, [&]<typename Feature>() -> std::tuple<Tensor, Tensor> {
    using T = Coordinate<Feature>;
    const auto p = roi_pool_params<T>(rois, features.size(0), features.size(1), features.size(2), features.size(3),
                                      pooled_height, pooled_width, spatial_scale);
    check_image_indices(p.rois, p.num_rois, p.num_images);
    const std::vector<int64_t> shape{p.num_rois, p.channels, pooled_height, pooled_width};
    Tensor out = channels_last_tensor(features, shape, dtype);
    Tensor argmax = channels_last_tensor(features, shape, ScalarType::Int);
    forward(p, maps.template const_data_ptr<Feature>(), out.template mutable_data_ptr<Feature>(),
            argmax.template mutable_data_ptr<int32_t>());
    return {is_channels_last(features) ? out : torch::stable::contiguous(out), argmax};
  });
}

// Always deterministic on the CPU, so `deterministic` has nothing to choose here.
Tensor roi_pool_backward_cpu(Tensor grad, Tensor rois, Tensor argmax, int64_t num_images, int64_t height, int64_t width,
                             double spatial_scale, bool channels_last, bool /*deterministic*/) {
  check_roi_pool_backward(grad, rois, argmax);
  grad = to_channels_last(grad);
  argmax = to_channels_last(argmax);
  rois = torch::stable::contiguous(rois);
  const ScalarType dtype = grad.scalar_type();
  return dispatch_features<Half, BFloat16>(dtype, [&]<typename Feature>() -> Tensor {
    using T = Coordinate<Feature>;
    const auto p =
        roi_pool_params<T>(rois, num_images, grad.size(1), height, width, grad.size(2), grad.size(3), spatial_scale);
    const ScalarType sum_type = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    Tensor sums = channels_last_tensor(grad, {num_images, p.channels, height, width}, sum_type);
    torch::stable::zero_(sums);
    backward(p, grad.template const_data_ptr<Feature>(), argmax.template const_data_ptr<int32_t>(),
             sums.template mutable_data_ptr<T>());
    if (dtype != sum_type) sums = torch::stable::to(sums, dtype);
    return channels_last ? sums : torch::stable::contiguous(sums);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CPU, m) {
  m.impl("roi_pool", TORCH_BOX(&roi_pool_cpu));
  m.impl("_roi_pool_backward", TORCH_BOX(&roi_pool_backward_cpu));
}

}  // namespace fastrcnn
