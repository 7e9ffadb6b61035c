// RoIAlign on the CPU, vectorised over channels (roi_align_simd.inl).
//
// A bin is a weighted sum of cells (math/roi.h). The weights of a RoI are worked out once (roi_weights.h), and the RoIs
// taken in an order in which neighbours follow each other.
// Forward, channels-last: threads own RoIs.
// Forward, NCHW: the same for one slice of the channels after the other, whose cells are first brought together
// (channels innermost) in a scratch that stays in the cache; a RoI's bins are turned back on their way out.
// Backward: threads own slices of the channels. A slice of one map is summed up RoI by RoI in a fixed order, each cell
// that a RoI reaches read and written once: in the result itself, or, if that has another layout or type than the sums,
// in a scratch that is then written out. No two threads write one number, and the sums do not depend on the number of
// threads or the size of the slices.
#include "roi_align.h"

#include <algorithm>

#include "../common/huge_pages.h"
#include "roi_align_simd.h"
#include "roi_weights.h"

namespace fastrcnn {
namespace {

constexpr int64_t kRoisPerThread = 8;     // below this a second thread costs more than it saves
constexpr int64_t kCellsPerThread = 256;  // the same
constexpr int64_t kSlice = 64;            // channels

// One image at one level.
struct Map {
  int level;
  int64_t image, width, cells;

  template <typename T>
  Map(const RoiAlignParams<T>& p, int64_t number)
      : level(static_cast<int>(number / p.num_images)),
        image(number % p.num_images),
        width(p.widths[level]),
        cells(width * p.heights[level]) {}
};

// Padding comes first in the order of RoisByMap.
template <typename Feature, typename T>
void zero_padding(const RoiAlignParams<T>& p, const RoisByMap<T>& sorted, Feature* out) {
  const int64_t roi_size = p.pooled_height * p.pooled_width * p.channels;
  for (int64_t i = 0; i < sorted.begin[0]; ++i) std::fill_n(out + sorted.rois[i].roi * roi_size, roi_size, Feature(0));
}

// features[l]: [N, height, width, C]; out: [R, pooled_height, pooled_width, C].
template <typename Feature, typename T>
void forward_channels_last(const RoiAlignParams<T>& p, const std::vector<const Feature*>& features, Feature* out) {
  const RoisByMap<T> sorted = rois_by_map(p, WeightsOf::bins);
  zero_padding(p, sorted, out);
  const int64_t roi_size = p.pooled_height * p.pooled_width * p.channels;
  torch::stable::parallel_for(sorted.begin[0], p.num_rois, kRoisPerThread, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const RoiWeights<T>& roi = sorted.rois[i];
      const Map map(p, roi.map);
      const Feature* cells = features[map.level] + map.image * map.cells * p.channels;
      FASTRCNN_SIMD(pool_roi, roi.y.sums(), roi.x.sums(), cells, map.width * p.channels, p.channels,
                    out + roi.roi * roi_size);
    }
  });
}

// features[l]: [N, C, height, width]; out: [R, C, pooled_height, pooled_width]; scratch: kSlice channels of all maps.
template <typename Feature, typename T>
void forward_nchw(const RoiAlignParams<T>& p, const std::vector<const Feature*>& features, Feature* scratch,
                  Feature* out) {
  const RoisByMap<T> sorted = rois_by_map(p, WeightsOf::bins);
  zero_padding(p, sorted, out);
  const int64_t num_bins = p.pooled_height * p.pooled_width;
  for (int64_t c0 = 0; c0 < p.channels; c0 += kSlice) {
    const int64_t channels = std::min(kSlice, p.channels - c0);
    std::vector<Feature*> slices;
    Feature* slice = scratch;
    for (size_t m = 0; m + 1 < sorted.begin.size(); ++m) {
      const Map map(p, m);
      slices.push_back(slice);
      int first_row = p.heights[map.level], last_row = 0;  // that a RoI draws from
      for (int64_t i = sorted.begin[m]; i < sorted.begin[m + 1]; ++i) {
        if (sorted.rois[i].y.last == 0) continue;
        first_row = std::min(first_row, sorted.rois[i].y.first);
        last_row = std::max(last_row, sorted.rois[i].y.last);
      }
      const Feature* planes = features[map.level] + (map.image * p.channels + c0) * map.cells;
      torch::stable::parallel_for(first_row * map.width, last_row * map.width, kCellsPerThread,
                                  [&](int64_t first, int64_t last) {
                                    FASTRCNN_SIMD(transpose, planes + first, map.cells, slice + first * channels,
                                                  channels, channels, last - first);
                                  });
      slice += map.cells * channels;
    }
    torch::stable::parallel_for(sorted.begin[0], p.num_rois, kRoisPerThread, [&](int64_t first, int64_t last) {
      std::vector<Feature> bins(static_cast<size_t>(num_bins * channels));
      for (int64_t i = first; i < last; ++i) {
        const RoiWeights<T>& roi = sorted.rois[i];
        FASTRCNN_SIMD(pool_roi, roi.y.sums(), roi.x.sums(), slices[roi.map], Map(p, roi.map).width * channels, channels,
                      bins.data());
        FASTRCNN_SIMD(transpose, bins.data(), channels, out + (roi.roi * p.channels + c0) * num_bins, num_bins,
                      num_bins, channels);
      }
    });
  }
}

// Channels per slice: one slice per thread, but whole cache lines of float32, so that threads do not share lines, and
// no more than a scratch should hold.
int64_t backward_slice(int64_t channels, bool in_place) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t share = ((channels + threads - 1) / threads + 15) / 16 * 16;
  return std::max<int64_t>(16, in_place ? share : std::min(kSlice, share));
}

// grad: [R, pooled_height, pooled_width, C] if grad_channels_last, else [R, C, pooled_height, pooled_width];
// feature_grads[l]: [N, height, width, C] if channels_last, else [N, C, height, width], written completely.
template <typename Feature, typename T>
void backward(const RoiAlignParams<T>& p, const Feature* grad, bool grad_channels_last,
              const std::vector<Feature*>& feature_grads, bool channels_last) {
  const RoisByMap<T> sorted = rois_by_map(p, WeightsOf::cells);
  const bool in_place = channels_last && std::is_same_v<Feature, T>;
  const int64_t slice = backward_slice(p.channels, in_place);
  const int64_t num_bins = p.pooled_height * p.pooled_width;
  const int64_t num_maps = p.num_levels * p.num_images, num_slices = (p.channels + slice - 1) / slice;
  torch::stable::parallel_for(0, num_slices * num_maps, 1, [&](int64_t first, int64_t last) {
    std::vector<T> scratch;
    std::vector<Feature> bins(static_cast<size_t>(grad_channels_last ? 0 : num_bins * slice));
    for (int64_t item = first; item < last; ++item) {
      const int64_t m = item % num_maps, c0 = item / num_maps * slice, channels = std::min(slice, p.channels - c0);
      const Map map(p, m);
      Feature* out = feature_grads[map.level] + map.image * p.channels * map.cells;
      if (!in_place) scratch.resize(std::max(scratch.size(), static_cast<size_t>(map.cells * channels)));
      T* const sums = in_place ? reinterpret_cast<T*>(out + c0) : scratch.data();
      const int64_t cell = in_place ? p.channels : channels;  // numbers from one cell of sums to the next
      int64_t cleared = 0;  // cells; the first RoI to reach a row clears it, so that it is in the cache when added to
      const auto clear_until = [&](int64_t end) {
        for (; cleared < end; ++cleared) std::fill_n(sums + cleared * cell, channels, T(0));
      };
      for (int64_t i = sorted.begin[m]; i < sorted.begin[m + 1]; ++i) {
        const RoiWeights<T>& roi = sorted.rois[i];
        clear_until(roi.y.last * map.width);
        const Feature* roi_grad = grad + roi.roi * num_bins * p.channels + (grad_channels_last ? c0 : c0 * num_bins);
        if (!grad_channels_last) {
          FASTRCNN_SIMD(transpose, roi_grad, num_bins, bins.data(), channels, channels, num_bins);
          roi_grad = bins.data();
        }
        FASTRCNN_SIMD(spread_roi, roi.y.sums(), roi.x.sums(), roi_grad, p.pooled_width,
                      grad_channels_last ? p.channels : channels, sums + (roi.y.first * map.width + roi.x.first) * cell,
                      map.width * cell, cell, channels);
      }
      clear_until(map.cells);
      if (in_place) continue;
      if (channels_last) {
        FASTRCNN_SIMD(copy_sums, sums, cell, out + c0, p.channels, map.cells, channels);
      } else {
        FASTRCNN_SIMD(transpose_sums, sums, cell, out + c0 * map.cells, map.cells, map.cells, channels);
      }
    }
  });
}

template <typename Feature, typename T>
Tensor roi_align_typed(const std::vector<Tensor>& features, const Tensor& rois, std::vector<double> spatial_scales,
                       int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned,
                       double finest_scale) {
  const bool channels_last = is_channels_last(features[0]);
  std::vector<Tensor> maps;
  std::vector<const Feature*> pointers;
  std::vector<int64_t> heights, widths;
  int64_t num_cells = 0;
  for (const Tensor& level : features) {
    maps.push_back(channels_last ? to_channels_last(level) : torch::stable::contiguous(level));
    pointers.push_back(maps.back().template const_data_ptr<Feature>());
    heights.push_back(level.size(2));
    widths.push_back(level.size(3));
    num_cells += level.size(0) * level.size(2) * level.size(3);
  }
  const Tensor dense_rois = torch::stable::contiguous(rois);
  const auto p =
      roi_align_params<T>(dense_rois, heights, widths, features[0].size(0), features[0].size(1), spatial_scales,
                          pooled_height, pooled_width, sampling_ratio, aligned, finest_scale);
  check_image_indices(p.rois, p.num_rois, p.num_images);
  const std::vector<int64_t> shape = {p.num_rois, p.channels, pooled_height, pooled_width};
  Tensor out = channels_last ? channels_last_tensor(features[0], shape, features[0].scalar_type())
                             : new_tensor(features[0], shape, features[0].scalar_type());
  map_huge_pages(out);
  if (channels_last) {
    forward_channels_last<Feature, T>(p, pointers, out.template mutable_data_ptr<Feature>());
  } else {
    Tensor scratch = new_tensor(features[0], {num_cells, std::min(kSlice, p.channels)}, features[0].scalar_type());
    map_huge_pages(scratch);
    forward_nchw<Feature, T>(p, pointers, scratch.template mutable_data_ptr<Feature>(),
                             out.template mutable_data_ptr<Feature>());
  }
  return out;
}

template <typename Feature, typename T>
std::vector<Tensor> roi_align_backward_typed(const Tensor& grad, const Tensor& rois, std::vector<int64_t> heights,
                                             std::vector<int64_t> widths, int64_t num_images,
                                             std::vector<double> spatial_scales, int64_t sampling_ratio, bool aligned,
                                             double finest_scale, bool channels_last) {
  const bool grad_channels_last = !grad.is_contiguous();
  const Tensor dense_grad = grad_channels_last ? to_channels_last(grad) : grad;
  const Tensor dense_rois = torch::stable::contiguous(rois);
  const auto p = roi_align_params<T>(dense_rois, heights, widths, num_images, grad.size(1), spatial_scales,
                                     grad.size(2), grad.size(3), sampling_ratio, aligned, finest_scale);
  FASTRCNN_CHECK(grad.size(0) == p.num_rois, "grad: expected one entry per RoI (", p.num_rois, "), got ", grad.size(0));
  std::vector<Tensor> feature_grads;
  std::vector<Feature*> pointers;
  for (int l = 0; l < p.num_levels; ++l) {
    const std::vector<int64_t> shape = {num_images, p.channels, heights[l], widths[l]};
    feature_grads.push_back(channels_last ? channels_last_tensor(grad, shape, grad.scalar_type())
                                          : new_tensor(grad, shape, grad.scalar_type()));
    map_huge_pages(feature_grads.back());
    pointers.push_back(feature_grads.back().template mutable_data_ptr<Feature>());
  }
  backward<Feature, T>(p, dense_grad.template const_data_ptr<Feature>(), grad_channels_last, pointers, channels_last);
  return feature_grads;
}

Tensor multilevel_roi_align_cpu(std::vector<Tensor> features, Tensor rois, std::vector<double> spatial_scales,
                                int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned,
                                double finest_scale) {
  simd_level();  // a wrong FASTRCNN_SIMD is reported here and not from within a thread
  check_features(features, rois);
  return dispatch_features<torch::headeronly::Half, torch::headeronly::BFloat16>(
      features[0].scalar_type(), [&]<typename Feature>() {
        return roi_align_typed<Feature, Coordinate<Feature>>(features, rois, spatial_scales, pooled_height,
                                                             pooled_width, sampling_ratio, aligned, finest_scale);
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
  return dispatch_features<torch::headeronly::Half, torch::headeronly::BFloat16>(
      grad.scalar_type(), [&]<typename Feature>() {
        return roi_align_backward_typed<Feature, Coordinate<Feature>>(grad, rois, level_heights, level_widths,
                                                                      num_images, spatial_scales, sampling_ratio,
                                                                      aligned, finest_scale, channels_last);
      });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CPU, m) {
  m.impl("multilevel_roi_align", TORCH_BOX(&multilevel_roi_align_cpu));
  m.impl("_multilevel_roi_align_backward", TORCH_BOX(&multilevel_roi_align_backward_cpu));
}

}  // namespace fastrcnn
