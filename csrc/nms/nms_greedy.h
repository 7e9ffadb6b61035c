// Greedy NMS on the CPU, shared by nms, generate_proposals and select_detections: boxes of one class, in the order of
// NMS -> the ones to keep.
//
// Most pairs of boxes are too far apart to suppress each other. So boxes are put into the cells of a grid by their
// upper left corners, and a kept box meets only those in the cells that it can reach (nms_simd.inl). This leaves out
// no pair that decides anything, so the result is that of comparing all pairs.
#pragma once

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "nms_simd.h"

namespace fastrcnn {

// Rows are few, since each that is in reach costs at least a vector; columns, whose boxes follow each other, are more.
constexpr double kBoxesPerRow = 16;  // there are sqrt(n / 16) rows
constexpr double kMostRows = 64;
constexpr double kColumnsPerRow = 4;

// What is known of the boxes along one axis.
template <typename T>
struct NmsExtent {
  T first = std::numeric_limits<T>::infinity(), last = -first, longest = 0;

  void add(T position, T side) {
    first = minimum(position, first), last = maximum(position, last), longest = maximum(side, longest);
  }

  NmsAxis<T> axis(T cells) const {
    const T length = last - first;
    return {first, length > T(0) && std::isfinite(length) ? cells / length : T(0), cells, longest};
  }
};

// Boxes of one class, laid out as the greedy loop wants them.
template <typename T>
class NmsLayout {
 public:
  template <typename BoxAt>
  NmsLayout(int64_t n, const BoxAt& box_at)
      : slots_(new int32_t[n]), numbers_(new T[5 * (n + kNmsPadding)]), alive_(new Flag[n + kNmsPadding]) {
    const double rows = std::clamp(std::sqrt(static_cast<double>(n) / kBoxesPerRow), 1.0, kMostRows);
    NmsExtent<T> x, y;
    for (int64_t i = 0; i < n; ++i) {
      const Box<T> box = box_at(i);
      const T width = box.x2 - box.x1, height = box.y2 - box.y1;
      if (!(width > T(0) && height > T(0) && std::isfinite(width * height))) continue;  // suppresses nothing
      x.add(box.x1, width), y.add(box.y1, height);
    }
    grid_.count = n;
    grid_.x = x.axis(std::floor(static_cast<T>(rows * kColumnsPerRow)));
    grid_.y = y.axis(std::floor(static_cast<T>(rows)));
    sort_into_cells(box_at);
  }

  const NmsGrid<T>& grid() const { return grid_; }

 private:
  using Flag = typename NmsGrid<T>::Flag;

  // Counts the boxes of each cell, and so knows the slots of each.
  template <typename BoxAt>
  void sort_into_cells(const BoxAt& box_at) {
    const int64_t n = grid_.count, padded = n + kNmsPadding;
    cells_.assign(static_cast<size_t>(grid_.x.cells * grid_.y.cells) + 2, 0);
    for (int64_t i = 0; i < n; ++i) {
      const Box<T> box = box_at(i);
      slots_[i] = static_cast<int32_t>(grid_.y.cell(box.y1) * static_cast<int64_t>(grid_.x.cells) +
                                       grid_.x.cell(box.x1));  // for now: its cell
      ++cells_[static_cast<size_t>(slots_[i]) + 2];
    }
    for (size_t cell = 2; cell < cells_.size(); ++cell) cells_[cell] += cells_[cell - 1];
    int32_t* next = cells_.data() + 1;  // first free slot of each cell; when all are filled, the first of the next cell
    T *x1 = numbers_.get(), *y1 = x1 + padded, *x2 = y1 + padded, *y2 = x2 + padded, *areas = y2 + padded;
    for (int64_t i = 0; i < n; ++i) {
      const Box<T> box = box_at(i);
      const int32_t slot = next[slots_[i]]++;
      slots_[i] = slot;
      x1[slot] = box.x1, y1[slot] = box.y1, x2[slot] = box.x2, y2[slot] = box.y2;
      areas[slot] = area(box);
      alive_[slot] = -1;
    }
    for (int64_t i = n; i < padded; ++i) x1[i] = y1[i] = x2[i] = y2[i] = areas[i] = T(0), alive_[i] = 0;
    grid_.x1 = x1, grid_.y1 = y1, grid_.x2 = x2, grid_.y2 = y2, grid_.area = areas;
    grid_.alive = alive_.get(), grid_.slots = slots_.get(), grid_.cells = cells_.data();
  }

  std::unique_ptr<int32_t[]> slots_;
  std::unique_ptr<T[]> numbers_;
  std::unique_ptr<Flag[]> alive_;
  std::vector<int32_t> cells_;
  NmsGrid<T> grid_;
};

// box_at(i): box i of n, best first. Calls keep(i) for the kept ones in that order, at most max_output times.
template <typename T, typename BoxAt, typename Keep>
void greedy_nms(int64_t n, const BoxAt& box_at, T threshold, int64_t max_output, const Keep& keep) {
  const NmsLayout<T> layout(n, box_at);
  const std::unique_ptr<int32_t[]> kept(new int32_t[n]);
  const int64_t num_kept = FASTRCNN_SIMD(keep_greedily, layout.grid(), threshold, max_output, kept.get());
  for (int64_t i = 0; i < num_kept; ++i) keep(kept[i]);
}

}  // namespace fastrcnn
