// RoIAlign, one axis at a time (He et al. 2017, Mask R-CNN, section 3; aligned = the half-pixel correction).
//
// A RoI is divided into bins, a bin is the mean of samples on a regular grid, and a sample is the bilinear
// interpolation of four cells. Sample positions and bilinear weights are products of a y and an x part, so a whole bin
// is
//     bin[p, q] = sum over y, x of  weight_y[p, y] * weight_x[q, x] * feature[y, x]
// where weight_y[p, .] gathers what the samples of bin row p give to each cell row. The forward pass reads with these
// weights, the backward pass writes with the same ones.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/host_device.h"

namespace fastrcnn {

// The samples of one RoI along one axis of a feature map, in cells.
template <typename T>
struct RoiAxis {
  T start;      // position of the RoI's edge
  T bin;        // size of a bin
  int samples;  // per bin; 0: none, the RoI pools to zero
  int cells;    // of the feature map
};

// `low`, `high`: the RoI's edges in image pixels; `scale`: cells per pixel. sampling_ratio <= 0 is adaptive:
// ceil(RoI size / bins) samples, none for an empty or reversed RoI. Without `aligned` a RoI has at least one cell.
template <typename T>
HOST_DEVICE RoiAxis<T> roi_axis(T low, T high, T scale, int bins, int cells, int sampling_ratio, bool aligned) {
  const T offset = aligned ? T(0.5) : T(0);
  const T start = low * scale - offset;
  T size = high * scale - offset - start;
  if (!aligned && size < T(1) && size - size == T(0)) size = T(1);  // an infinite size stays: it pools to zero
  RoiAxis<T> axis{start, size / static_cast<T>(bins), sampling_ratio, cells};
  if (sampling_ratio <= 0) {
    const T wanted = std::ceil(axis.bin);
    const T most = T(1 << 24);  // beyond it positions are no longer distinct in float32
    axis.samples = wanted >= T(1) ? static_cast<int>(wanted < most ? wanted : most) : 0;  // NaN: 0
  }
  return axis;
}

// One sample between two neighbouring cells.
template <typename T>
struct BilinearTap {
  bool inside;  // false: more than one cell outside the map, or NaN; such a sample is zero
  int low, high;
  T low_weight, high_weight;
};

template <typename T>
HOST_DEVICE BilinearTap<T> bilinear_tap(T position, int cells) {
  if (!(position >= T(-1) && position <= static_cast<T>(cells))) return {false, 0, 0, T(0), T(0)};
  if (position <= T(0)) position = T(0);
  const int low = static_cast<int>(position);
  if (low >= cells - 1) return {true, cells - 1, cells - 1, T(1), T(0)};
  const T fraction = position - static_cast<T>(low);
  return {true, low, low + 1, T(1) - fraction, fraction};
}

// Sample s of bin p.
template <typename T>
HOST_DEVICE BilinearTap<T> roi_sample(const RoiAxis<T>& axis, int p, int s) {
  const T position = axis.start + static_cast<T>(p) * axis.bin +
                     (static_cast<T>(s) + T(0.5)) * axis.bin / static_cast<T>(axis.samples);
  return bilinear_tap(position, axis.cells);
}

// The samples of bin p that can lie inside the map: [first, last). A RoI far larger than the map thus costs no more
// than the map. One sample of slack on either side absorbs rounding; roi_sample decides exactly.
struct SampleRange {
  int first, last;
};

template <typename T>
HOST_DEVICE SampleRange roi_sample_range(const RoiAxis<T>& axis, int p) {
  const T step = axis.bin / static_cast<T>(axis.samples > 0 ? axis.samples : 1);
  if (axis.samples <= 64 || !(step > T(0))) return {0, axis.samples};
  const T bin_start = axis.start + static_cast<T>(p) * axis.bin;
  const T first = (T(-1) - bin_start) / step - T(2), last = (static_cast<T>(axis.cells) - bin_start) / step + T(2);
  const T samples = static_cast<T>(axis.samples);
  return {static_cast<int>(first > T(0) ? (first < samples ? first : samples) : T(0)),
          static_cast<int>(last > T(0) ? (last < samples ? last : samples) : T(0))};
}

// Calls add(cell, weight) for each cell that bin p draws from; what neighbouring samples give to a cell is summed.
// Cells come in ascending order, each once; those of a reversed RoI (fixed sampling ratio) can come twice.
template <typename T, typename Add>
HOST_DEVICE void for_each_cell(const RoiAxis<T>& axis, int p, const Add& add) {
  const SampleRange range = roi_sample_range(axis, p);
  const T samples = static_cast<T>(axis.samples);
  int cell = -1;                 // samples lie between this cell and the next one
  T weight = T(0), next = T(0);  // what they give to the two so far
  for (int s = range.first; s < range.last; ++s) {
    const BilinearTap<T> tap = roi_sample(axis, p, s);
    if (!tap.inside) continue;
    if (tap.low != cell) {
      if (weight > T(0)) add(cell, weight);
      if (next > T(0) && tap.low != cell + 1) add(cell + 1, next);
      weight = tap.low == cell + 1 ? next : T(0);
      next = T(0);
      cell = tap.low;
    }
    weight += tap.low_weight / samples;
    next += tap.high_weight / samples;
  }
  if (weight > T(0)) add(cell, weight);
  if (next > T(0)) add(cell + 1, next);
}

// The FPN level that a RoI is pooled from (Lin et al. 2017, Feature Pyramid Networks, equation 1, in mmdetection's
// form): floor(log2(sqrt(w * h) / finest_scale + 1e-6)), clamped. Comparing with powers of two gives the same without a
// logarithm, whose rounding differs between devices. A reversed or NaN RoI goes to level 0.
template <typename T>
HOST_DEVICE int roi_level(T width, T height, T finest_scale, int num_levels) {
  const T side = std::sqrt(width * height) / finest_scale + T(1e-6);
  int level = 0;
  for (T bound = T(2); level < num_levels - 1 && side >= bound; bound *= T(2)) ++level;
  return level;
}

}  // namespace fastrcnn
