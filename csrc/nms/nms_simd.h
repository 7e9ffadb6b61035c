// The greedy loop of NMS on the CPU (nms_simd.inl): boxes of one class, in cells of a grid -> the kept ones.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../math/box.h"
#include "../simd/level.h"

namespace fastrcnn {

constexpr int64_t kNmsPadding = 16;  // slots that may be read and written beyond the last box

// An axis of the grid: where along it the boxes begin, in cells of equal length.
template <typename T>
struct NmsAxis {
  T start;    // of the first cell
  T scale;    // cells per pixel
  T cells;    // a whole number
  T longest;  // side of any box

  // Grows with the position; what lies outside the grid is in its first or last cell, and so is NaN.
  HOST_DEVICE int64_t cell(T position) const {
    const T place = (position - start) * scale;
    return place >= cells ? static_cast<int64_t>(cells) - 1 : (place > T(0) ? static_cast<int64_t>(place) : 0);
  }
};

// A box that suppresses, or is suppressed by, one that begins at `position` and is `side` long begins in
// [first, last]. Of the two sides and the length of the overlap, IoU <= overlap / side (the other axis adds at most a
// factor of 1). So the overlap is at least t = `least_iou` of either side, neither side is longer than the other / t,
// and the one that begins first has at most 1 - t of its side before the other begins.
template <typename T>
struct NmsReach {
  T first, last;
};

template <typename T>
HOST_DEVICE NmsReach<T> nms_reach(T position, T side, T longest, T least_iou) {
  return {position - (T(1) - least_iou) * minimum(side / least_iou, longest), position + (T(1) - least_iou) * side};
}

// Boxes of one class as separate arrays by slot, cell by cell of the grid, row by row.
template <typename T>
struct NmsGrid {
  using Flag = std::conditional_t<std::is_same_v<T, float>, int32_t, int64_t>;  // as wide as T
  const T *x1, *y1, *x2, *y2, *area;
  Flag* alive;           // -1 or 0
  const int32_t* slots;  // [count]: of each box in the order of NMS
  const int32_t* cells;  // [rows * columns + 1]: first slot of each cell, and the end
  int64_t count;
  NmsAxis<T> x, y;
};

// Writes the numbers, in the order of NMS, of the boxes to keep, at most max_output; returns how many.
#define FASTRCNN_NMS_KERNELS(T) \
  int64_t keep_greedily(const NmsGrid<T>& grid, T threshold, int64_t max_output, int32_t* kept);

FASTRCNN_DECLARE_SIMD(FASTRCNN_NMS_KERNELS(float) FASTRCNN_NMS_KERNELS(double))

#undef FASTRCNN_NMS_KERNELS

}  // namespace fastrcnn
