// The greedy loop of NMS on the CPU, shared by nms, generate_proposals and select_detections: boxes of one class, in
// the order of NMS -> the ones to keep.
#pragma once

#include <vector>

#include "nms_simd.h"

namespace fastrcnn {

// box_at(i): box i of n, best first. Calls keep(i) for the kept ones in that order, at most max_output times.
template <typename T, typename BoxAt, typename Keep>
void greedy_nms(int64_t n, const BoxAt& box_at, T threshold, int64_t max_output, const Keep& keep) {
  const int64_t padded = (n + kNmsBlock - 1) / kNmsBlock * kNmsBlock;
  std::vector<T> coordinates(static_cast<size_t>(5 * padded), T(0));
  std::vector<int32_t> alive(static_cast<size_t>(padded), 0);
  T *x1 = coordinates.data(), *y1 = x1 + padded, *x2 = y1 + padded, *y2 = x2 + padded, *areas = y2 + padded;
  for (int64_t i = 0; i < n; ++i) {
    const Box<T> box = box_at(i);
    x1[i] = box.x1, y1[i] = box.y1, x2[i] = box.x2, y2[i] = box.y2;
    areas[i] = area(box);
    alive[i] = -1;
  }
  const NmsBoxes<T> sorted{x1, y1, x2, y2, areas, alive.data(), padded};
  int64_t num_kept = 0;
  for (int64_t i = 0; i < n && num_kept < max_output; ++i) {
    if (!alive[i]) continue;
    keep(i);
    ++num_kept;
    FASTRCNN_SIMD(suppress_after, sorted, i, threshold);
  }
}

}  // namespace fastrcnn
