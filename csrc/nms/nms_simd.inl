// The greedy loop of NMS, compiled once per SIMD level. A kept box meets the boxes that begin near enough to be
// suppressed (nms_simd.h: nms_reach), a vector of slots at a time; in a row of cells these are consecutive slots. Slots
// beyond the end of a run are met too: the rule decides about them as about any others, and rightly. What happens to
// the flags of boxes that were decided before does not matter.
namespace fastrcnn {
namespace FASTRCNN_LEVEL {

template <typename T>
FASTRCNN_INLINE void suppress_near(const NmsGrid<T>& grid, int64_t slot, T threshold) {
  const Box<T> box{grid.x1[slot], grid.y1[slot], grid.x2[slot], grid.y2[slot]};
  const T box_area = grid.area[slot];
  // A hundredth for rounding. Where this does not suffice, since the area might underflow: any overlap counts.
  const T least_iou = threshold >= T(0.01) && box_area >= T(1e-30) ? threshold * T(0.99) : T(0);
  const NmsReach<T> x = nms_reach(box.x1, box.x2 - box.x1, grid.x.longest, least_iou);
  const NmsReach<T> y = nms_reach(box.y1, box.y2 - box.y1, grid.y.longest, least_iou);
  const int64_t first_column = grid.x.cell(x.first), last_column = grid.x.cell(x.last);
  const int64_t last_row = grid.y.cell(y.last);
  for (int64_t row = grid.y.cell(y.first); row <= last_row; ++row) {
    const int32_t* cells = grid.cells + row * static_cast<int64_t>(grid.x.cells);
    const int64_t end = cells[last_column + 1];
    for (int64_t i = cells[first_column]; i < end; i += kLanes<T>) {
      const T *x1 = grid.x1 + i, *y1 = grid.y1 + i, *x2 = grid.x2 + i, *y2 = grid.y2 + i, *area = grid.area + i;
      auto* alive = grid.alive + i;
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
        // As `suppresses`, without its question for boxes that are apart, which would be a branch.
        const T inter = intersection(box, Box<T>{x1[lane], y1[lane], x2[lane], y2[lane]});
        alive[lane] = overlap_exceeds(inter, box_area, area[lane], threshold) ? 0 : alive[lane];
      }
    }
  }
}

template <typename T>
FASTRCNN_INLINE int64_t keep_greedily_typed(const NmsGrid<T>& grid, T threshold, int64_t max_output, int32_t* kept) {
  int64_t num_kept = 0;
  for (int64_t i = 0; i < grid.count && num_kept < max_output; ++i) {
    const int64_t slot = grid.slots[i];
    if (!grid.alive[slot]) continue;
    kept[num_kept++] = static_cast<int32_t>(i);
    suppress_near(grid, slot, threshold);
  }
  return num_kept;
}

int64_t keep_greedily(const NmsGrid<float>& grid, float threshold, int64_t max_output, int32_t* kept) {
  return keep_greedily_typed(grid, threshold, max_output, kept);
}
int64_t keep_greedily(const NmsGrid<double>& grid, double threshold, int64_t max_output, int32_t* kept) {
  return keep_greedily_typed(grid, threshold, max_output, kept);
}

}  // namespace FASTRCNN_LEVEL
}  // namespace fastrcnn
