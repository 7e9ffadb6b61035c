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

// pool_roi: one RoI, forward. y, x: for each bin row or column, its cells. map: [height, width, channels], `row`
// numbers from one row to the next. out: [y.count, x.count, channels].
//
// spread_roi: one RoI, backward. y, x: for each cell row or column that the RoI reaches, the bins that read it. grad:
// [pooled height, pooled_width, channels], `bin` numbers from one bin to the next. map: from the first such cell on,
// [height, width, channels], `row` and `cell` numbers from one row and cell to the next; the RoI's share is added.
//
// transpose, transpose_sums: to[j][i] = from[i][j], rows of `from_row` and `to_row` numbers; from has the given number
// of rows and columns. copy_sums: to[i][j] = from[i][j]. Sums are rounded to features.
#define FASTRCNN_ROI_ALIGN_KERNELS(Feature, T)                                                                       \
  void pool_roi(const AxisSums<T>& y, const AxisSums<T>& x, const Feature* map, int64_t row, int64_t channels,       \
                Feature* out);                                                                                       \
  void spread_roi(const AxisSums<T>& y, const AxisSums<T>& x, const Feature* grad, int pooled_width, int64_t bin,    \
                  T* map, int64_t row, int64_t cell, int64_t channels);                                              \
  void transpose(const Feature* from, int64_t from_row, Feature* to, int64_t to_row, int64_t rows, int64_t columns); \
  void transpose_sums(const T* from, int64_t from_row, Feature* to, int64_t to_row, int64_t rows, int64_t columns);  \
  void copy_sums(const T* from, int64_t from_row, Feature* to, int64_t to_row, int64_t rows, int64_t columns);

FASTRCNN_DECLARE_SIMD(FASTRCNN_ROI_ALIGN_KERNELS(float, float) FASTRCNN_ROI_ALIGN_KERNELS(double, double)
                          FASTRCNN_ROI_ALIGN_KERNELS(torch::headeronly::Half, float)
                              FASTRCNN_ROI_ALIGN_KERNELS(torch::headeronly::BFloat16, float))

#undef FASTRCNN_ROI_ALIGN_KERNELS

}  // namespace fastrcnn
