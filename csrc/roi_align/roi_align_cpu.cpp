// RoIAlign on the CPU, channels-last, vectorised over channels (roi_align_simd.inl).
//
// A bin is a weighted sum of cells (math/roi.h). The weights of a RoI are computed once per axis and shared by all its
// bins and channels.
// Forward: threads own RoIs, in an order in which neighbours follow each other, so that their cells are still cached.
// Backward: threads own disjoint slices of the channels and visit all RoIs in the same order, so no two threads write
// one number, and the sums do not depend on the number of threads. Each cell that a RoI reaches is read and written
// once.
#include "roi_align.h"

#include <algorithm>

#include "../common/huge_pages.h"
#include "roi_align_simd.h"

namespace fastrcnn {
namespace {

constexpr int64_t kRoisPerThread = 8;  // below this a second thread costs more than it saves

template <typename T>
class AxisWeights {
 public:
  // For each bin along an axis, its cells.
  void cells_of_bins(const RoiAxis<T>& axis, int bins) {
    terms_.clear();
    begin_.assign(1, 0);
    for (int p = 0; p < bins; ++p) {
      for_each_cell(axis, p, [this](int cell, T weight) { terms_.push_back({cell, weight}); });
      begin_.push_back(static_cast<int>(terms_.size()));
    }
  }

  // The transpose: for each cell from `first` on, the bins that read it, in order.
  void bins_of_cells(const AxisWeights& bins) {
    first = 0;
    terms_.resize(bins.terms_.size());
    if (terms_.empty()) {
      begin_.assign(1, 0);
      return;
    }
    int last = 0;
    first = bins.terms_[0].index;
    for (const AxisTerm<T>& term : bins.terms_) {
      first = std::min(first, term.index);
      last = std::max(last, term.index);
    }
    begin_.assign(static_cast<size_t>(last - first) + 2, 0);
    for (const AxisTerm<T>& term : bins.terms_) ++begin_[term.index - first + 1];
    for (size_t i = 1; i < begin_.size(); ++i) begin_[i] += begin_[i - 1];
    next_.assign(begin_.begin(), begin_.end());
    for (size_t p = 0; p + 1 < bins.begin_.size(); ++p) {
      for (int i = bins.begin_[p]; i < bins.begin_[p + 1]; ++i) {
        terms_[next_[bins.terms_[i].index - first]++] = {static_cast<int>(p), bins.terms_[i].weight};
      }
    }
  }

  AxisSums<T> sums() const { return {terms_.data(), begin_.data(), static_cast<int>(begin_.size()) - 1}; }

  int first = 0;  // bins_of_cells: the cell of entry 0

 private:
  std::vector<AxisTerm<T>> terms_;
  std::vector<int> begin_, next_;
};

// The RoIs by level, image, band of rows and column.
template <typename T>
std::vector<int64_t> order_for_cache(const RoiAlignParams<T>& p) {
  constexpr T band = 16;  // cells
  struct Key {
    int64_t map;
    T row, column;
    int64_t roi;
  };
  std::vector<Key> keys(static_cast<size_t>(p.num_rois));
  for (int64_t r = 0; r < p.num_rois; ++r) {
    const RoiPlace<T> place = roi_place(p, r);
    const bool finite = std::isfinite(place.y.start) && std::isfinite(place.x.start);
    keys[r] = {place.level * (p.num_images + 1) + place.image, finite ? std::floor(place.y.start / band) : T(0),
               finite ? place.x.start : T(0), r};
  }
  std::sort(keys.begin(), keys.end(), [](const Key& a, const Key& b) {
    return std::tie(a.map, a.row, a.column, a.roi) < std::tie(b.map, b.row, b.column, b.roi);
  });
  std::vector<int64_t> order;
  for (const Key& key : keys) order.push_back(key.roi);
  return order;
}

// features[l]: [N, height, width, C]; out: [R, pooled_height, pooled_width, C].
template <typename Feature, typename T>
void forward(const RoiAlignParams<T>& p, const std::vector<const Feature*>& features, Feature* out) {
  const std::vector<int64_t> order = order_for_cache(p);
  const int64_t roi_size = p.pooled_height * p.pooled_width * p.channels;
  torch::stable::parallel_for(0, p.num_rois, kRoisPerThread, [&](int64_t first, int64_t last) {
    AxisWeights<T> y, x;
    for (int64_t i = first; i < last; ++i) {
      const int64_t r = order[i];
      const RoiPlace<T> place = roi_place(p, r);
      if (place.image < 0) {
        std::fill(out + r * roi_size, out + (r + 1) * roi_size, Feature(0));
        continue;
      }
      y.cells_of_bins(place.y, p.pooled_height);
      x.cells_of_bins(place.x, p.pooled_width);
      const int64_t row = p.widths[place.level] * p.channels;
      const Feature* map = features[place.level] + place.image * p.heights[place.level] * row;
      FASTRCNN_SIMD(pool_roi, y.sums(), x.sums(), map, row, p.channels, out + r * roi_size);
    }
  });
}

// grad: [R, pooled_height, pooled_width, C]; feature_grads[l]: [N, height, width, C], zero on entry.
template <typename Feature, typename T>
void backward(const RoiAlignParams<T>& p, const Feature* grad, const std::vector<T*>& feature_grads) {
  constexpr int64_t slice = 16;  // channels: a cache line of float32, so that threads do not share lines
  const std::vector<int64_t> order = order_for_cache(p);
  const int64_t roi_size = p.pooled_height * p.pooled_width * p.channels;
  torch::stable::parallel_for(0, (p.channels + slice - 1) / slice, 1, [&](int64_t first, int64_t last) {
    const int64_t c0 = first * slice, c1 = std::min(last * slice, p.channels);
    AxisWeights<T> bins, y, x;
    for (const int64_t r : order) {
      const RoiPlace<T> place = roi_place(p, r);
      if (place.image < 0) continue;
      bins.cells_of_bins(place.y, p.pooled_height);
      y.bins_of_cells(bins);
      bins.cells_of_bins(place.x, p.pooled_width);
      x.bins_of_cells(bins);
      const int64_t row = p.widths[place.level] * p.channels;
      T* map = feature_grads[place.level] + place.image * p.heights[place.level] * row;
      FASTRCNN_SIMD(spread_roi, y.sums(), x.sums(), y.first, x.first, grad + r * roi_size, p.pooled_width, map, row,
                    p.channels, c0, c1);
    }
  });
}

// On the CPU the index of every RoI is checked; on CUDA, where looking would mean waiting, such RoIs pool to zero.
template <typename T>
void check_image_indices(const RoiAlignParams<T>& p) {
  for (int64_t r = 0; r < p.num_rois; ++r) {
    const T index = p.rois[r * 5];
    FASTRCNN_CHECK(index >= T(-1) && index < static_cast<T>(p.num_images) && index == std::floor(index), "rois[", r,
                   ", 0]: expected the index of one of ", p.num_images, " images (or -1 for padding), got ", index);
  }
}

template <typename Feature, typename T>
Tensor roi_align_typed(const std::vector<Tensor>& features, const Tensor& rois, std::vector<double> spatial_scales,
                       int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned,
                       double finest_scale) {
  std::vector<Tensor> maps;
  std::vector<const Feature*> pointers;
  std::vector<int64_t> heights, widths;
  for (const Tensor& level : features) {
    maps.push_back(to_channels_last(level));
    pointers.push_back(maps.back().template const_data_ptr<Feature>());
    heights.push_back(level.size(2));
    widths.push_back(level.size(3));
  }
  const Tensor dense_rois = torch::stable::contiguous(rois);
  const auto p =
      roi_align_params<T>(dense_rois, heights, widths, features[0].size(0), features[0].size(1), spatial_scales,
                          pooled_height, pooled_width, sampling_ratio, aligned, finest_scale);
  check_image_indices(p);
  Tensor out = channels_last_tensor(features[0], {p.num_rois, p.channels, pooled_height, pooled_width},
                                    features[0].scalar_type());
  prefer_huge_pages(out);
  forward<Feature, T>(p, pointers, out.template mutable_data_ptr<Feature>());
  return is_channels_last(features[0]) ? out : torch::stable::contiguous(out);
}

template <typename Feature, typename T>
std::vector<Tensor> roi_align_backward_typed(const Tensor& grad, const Tensor& rois, std::vector<int64_t> heights,
                                             std::vector<int64_t> widths, int64_t num_images,
                                             std::vector<double> spatial_scales, int64_t sampling_ratio, bool aligned,
                                             double finest_scale, bool channels_last) {
  const Tensor dense_grad = to_channels_last(grad), dense_rois = torch::stable::contiguous(rois);
  const auto p = roi_align_params<T>(dense_rois, heights, widths, num_images, grad.size(1), spatial_scales,
                                     grad.size(2), grad.size(3), sampling_ratio, aligned, finest_scale);
  FASTRCNN_CHECK(grad.size(0) == p.num_rois, "grad: expected one entry per RoI (", p.num_rois, "), got ", grad.size(0));
  std::vector<Tensor> sums;
  std::vector<T*> pointers;
  const ScalarType sum_type = grad.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  for (int l = 0; l < p.num_levels; ++l) {
    sums.push_back(channels_last_tensor(grad, {num_images, p.channels, heights[l], widths[l]}, sum_type));
    prefer_huge_pages(sums.back());
    torch::stable::zero_(sums.back());
    pointers.push_back(sums.back().template mutable_data_ptr<T>());
  }
  backward<Feature, T>(p, dense_grad.template const_data_ptr<Feature>(), pointers);
  for (Tensor& sum : sums) {
    if (grad.scalar_type() != sum_type) sum = torch::stable::to(sum, grad.scalar_type());
    if (!channels_last) sum = torch::stable::contiguous(sum);
  }
  return sums;
}

// Calls function.template operator()<feature type, coordinate type>().
template <typename Function>
auto dispatch(ScalarType dtype, Function&& function) {
  switch (dtype) {
    case ScalarType::Double: return function.template operator()<double, double>();
    case ScalarType::Half: return function.template operator()<torch::headeronly::Half, float>();
    case ScalarType::BFloat16: return function.template operator()<torch::headeronly::BFloat16, float>();
    default: return function.template operator()<float, float>();
  }
}

Tensor multilevel_roi_align_cpu(std::vector<Tensor> features, Tensor rois, std::vector<double> spatial_scales,
                                int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned,
                                double finest_scale) {
  simd_level();  // a wrong FASTRCNN_SIMD is reported here and not from within a thread
  check_features(features, rois);
  return dispatch(features[0].scalar_type(), [&]<typename Feature, typename T>() {
    return roi_align_typed<Feature, T>(features, rois, spatial_scales, pooled_height, pooled_width, sampling_ratio,
                                       aligned, finest_scale);
  });
}

// Always deterministic on the CPU, so `deterministic` has nothing to choose here.
std::vector<Tensor> multilevel_roi_align_backward_cpu(Tensor grad, Tensor rois, std::vector<int64_t> level_heights,
                                                      std::vector<int64_t> level_widths, int64_t num_images,
                                                      std::vector<double> spatial_scales, int64_t sampling_ratio,
                                                      bool aligned, double finest_scale, bool channels_last,
                                                      bool /*deterministic*/) {
  check_shape(grad, "grad", "[R, C, pooled height, pooled width]", {-1, -1, -1, -1});
  simd_level();  // a wrong FASTRCNN_SIMD is reported here and not from within a thread
  check_features({grad}, rois);
  return dispatch(grad.scalar_type(), [&]<typename Feature, typename T>() {
    return roi_align_backward_typed<Feature, T>(grad, rois, level_heights, level_widths, num_images, spatial_scales,
                                                sampling_ratio, aligned, finest_scale, channels_last);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CPU, m) {
  m.impl("multilevel_roi_align", TORCH_BOX(&multilevel_roi_align_cpu));
  m.impl("_multilevel_roi_align_backward", TORCH_BOX(&multilevel_roi_align_backward_cpu));
}

}  // namespace fastrcnn
