// The hot loops of RoIAlign on the CPU (roi_align_simd.inl). In channels-last memory a cell is C consecutive features.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../simd/level.h"

namespace fastrcnn {

// One term of a weighted sum: `index` is a cell of the axis (forward) or a bin (backward).
template <typename T>
struct AxisTerm {
  int index;
  T weight;
};

// A list of terms for each entry of an axis: those of entry i are terms[begin[i] .. begin[i + 1]).
template <typename T>
struct AxisSums {
  const AxisTerm<T>* terms;
  const int* begin;
  int count;  // entries
};

// pool_roi: one RoI, forward. y, x: for each bin row or column, its cells. map: [height, width, C], `row` features from
// one row to the next. out: [y.count, x.count, C].
//
// spread_roi: one RoI, backward, of channels [c0, c1). y, x: for each cell row or column that the RoI reaches, from
// cell (y0, x0) on, the bins that read it. grad: [pooled height, pooled_width, C]; map += its share.
#define FASTRCNN_ROI_ALIGN_KERNELS(Feature, T)                                                                       \
  void pool_roi(const AxisSums<T>& y, const AxisSums<T>& x, const Feature* map, int64_t row, int64_t channels,       \
                Feature* out);                                                                                       \
  void spread_roi(const AxisSums<T>& y, const AxisSums<T>& x, int y0, int x0, const Feature* grad, int pooled_width, \
                  T* map, int64_t row, int64_t channels, int64_t c0, int64_t c1);

FASTRCNN_DECLARE_SIMD(FASTRCNN_ROI_ALIGN_KERNELS(float, float) FASTRCNN_ROI_ALIGN_KERNELS(double, double)
                          FASTRCNN_ROI_ALIGN_KERNELS(torch::headeronly::Half, float)
                              FASTRCNN_ROI_ALIGN_KERNELS(torch::headeronly::BFloat16, float))

#undef FASTRCNN_ROI_ALIGN_KERNELS

}  // namespace fastrcnn
