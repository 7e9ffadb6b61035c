// What each RoI draws from, for the CPU kernels: worked out once per axis, and used for all bins and channels.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "roi_align_params.h"
#include "roi_align_simd.h"

namespace fastrcnn {

template <typename T>
class AxisWeights {
 public:
  // For each bin along an axis, its cells.
  void cells_of_bins(const RoiAxis<T>& axis, int bins) {
    begin_.assign(1, 0);
    for (int p = 0; p < bins; ++p) {
      for_each_cell(axis, p, [this](int cell, T weight) { terms_.push_back({cell, weight}); });
      begin_.push_back(static_cast<int>(terms_.size()));
    }
    if (terms_.empty()) return;
    const auto by_index = [](const AxisTerm<T>& a, const AxisTerm<T>& b) { return a.index < b.index; };
    const auto [low, high] = std::minmax_element(terms_.begin(), terms_.end(), by_index);
    first = low->index;
    last = high->index + 1;
  }

  // The transpose: for each cell in [first, last), the bins that read it, in order.
  AxisWeights transposed() const {
    AxisWeights cells;
    cells.first = first;
    cells.last = last;
    cells.begin_.assign(static_cast<size_t>(last - first) + 1, 0);
    for (const AxisTerm<T>& term : terms_) ++cells.begin_[term.index - first + 1];
    for (size_t i = 1; i < cells.begin_.size(); ++i) cells.begin_[i] += cells.begin_[i - 1];
    cells.terms_.resize(terms_.size());
    std::vector<int> next = cells.begin_;
    for (size_t p = 0; p + 1 < begin_.size(); ++p) {
      for (int i = begin_[p]; i < begin_[p + 1]; ++i) {
        cells.terms_[next[terms_[i].index - first]++] = {static_cast<int>(p), terms_[i].weight};
      }
    }
    return cells;
  }

  AxisSums<T> sums() const { return {terms_.data(), begin_.data(), static_cast<int>(begin_.size()) - 1}; }

  int first = 0, last = 0;  // the cells that have a weight lie in [first, last)

 private:
  std::vector<AxisTerm<T>> terms_;
  std::vector<int> begin_;
};

// A map is one image at one level; they are numbered level by level.
template <typename T>
struct RoiWeights {
  int64_t roi;
  int64_t map;  // -1: padding
  AxisWeights<T> y, x;
};

template <typename T>
struct RoisByMap {
  std::vector<RoiWeights<T>> rois;  // padding first, then map by map
  std::vector<int64_t> begin;       // the RoIs of map m are rois[begin[m]] .. rois[begin[m + 1]]
};

enum class WeightsOf { bins, cells };

// The RoIs by map, band of rows and column: neighbours follow each other, so that their cells are still cached.
template <typename T>
RoisByMap<T> rois_by_map(const RoiAlignParams<T>& p, WeightsOf entries) {
  constexpr T band = 16;  // cells
  struct Key {
    int64_t map;
    T row, column;
    int64_t roi;
  };
  std::vector<Key> keys(static_cast<size_t>(p.num_rois));
  RoisByMap<T> sorted;
  sorted.begin.assign(static_cast<size_t>(p.num_levels * p.num_images) + 1, 0);
  for (int64_t r = 0; r < p.num_rois; ++r) {
    const RoiPlace<T> place = roi_place(p, r);
    const bool finite = std::isfinite(place.y.start) && std::isfinite(place.x.start);
    const int64_t map = place.image < 0 ? -1 : place.level * p.num_images + place.image;
    keys[r] = {map, finite ? std::floor(place.y.start / band) : T(0), finite ? place.x.start : T(0), r};
    ++sorted.begin[map + 1];
  }
  for (size_t m = 1; m < sorted.begin.size(); ++m) sorted.begin[m] += sorted.begin[m - 1];
  std::sort(keys.begin(), keys.end(), [](const Key& a, const Key& b) {
    return std::tie(a.map, a.row, a.column, a.roi) < std::tie(b.map, b.row, b.column, b.roi);
  });
  sorted.rois.resize(keys.size());
  torch::stable::parallel_for(0, p.num_rois, 64, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      RoiWeights<T>& weights = sorted.rois[i];
      weights.roi = keys[i].roi;
      weights.map = keys[i].map;
      if (weights.map < 0) continue;
      const RoiPlace<T> place = roi_place(p, weights.roi);
      weights.y.cells_of_bins(place.y, p.pooled_height);
      weights.x.cells_of_bins(place.x, p.pooled_width);
      if (entries == WeightsOf::bins) continue;
      weights.y = weights.y.transposed();
      weights.x = weights.x.transposed();
    }
  });
  return sorted;
}

}  // namespace fastrcnn
