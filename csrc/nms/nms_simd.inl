// The hot loop of NMS, compiled once per SIMD level. Blocks in which nobody is alive are skipped. A multiplication
// first finds the boxes that may be suppressed, with a margin for its rounding; only a block that has one pays for
// divisions.
namespace fastrcnn {
namespace FASTRCNN_LEVEL {

template <typename T>
FASTRCNN_INLINE bool any_set(const int32_t* flags) {
  int32_t any = 0;
  for (int64_t j = 0; j < kNmsBlock; ++j) any |= flags[j];
  return any != 0;
}

template <typename T>
FASTRCNN_INLINE void suppress_after_typed(const NmsBoxes<T>& boxes, int64_t i, T threshold) {
  const Box<T> box{boxes.x1[i], boxes.y1[i], boxes.x2[i], boxes.y2[i]};
  const T box_area = boxes.area[i];
  const T margin = threshold * T(0.999);
  for (int64_t first = i / kNmsBlock * kNmsBlock; first < boxes.count; first += kNmsBlock) {
    int32_t* alive = boxes.alive + first;
    if (!any_set<T>(alive)) continue;
    const T *x1 = boxes.x1 + first, *y1 = boxes.y1 + first, *x2 = boxes.x2 + first, *y2 = boxes.y2 + first;
    const T* other_area = boxes.area + first;
    int32_t candidates[kNmsBlock];
    for (int64_t j = 0; j < kNmsBlock; ++j) {
      const T inter = intersection(box, Box<T>{x1[j], y1[j], x2[j], y2[j]});
      candidates[j] = inter > margin * (box_area + other_area[j] - inter) ? alive[j] : 0;
    }
    if (!any_set<T>(candidates)) continue;
    for (int64_t j = 0; j < kNmsBlock; ++j) {
      const bool gone = suppresses(box, box_area, Box<T>{x1[j], y1[j], x2[j], y2[j]}, other_area[j], threshold);
      alive[j] = gone ? 0 : alive[j];
    }
  }
}

void suppress_after(const NmsBoxes<float>& boxes, int64_t i, float threshold) {
  suppress_after_typed(boxes, i, threshold);
}
void suppress_after(const NmsBoxes<double>& boxes, int64_t i, double threshold) {
  suppress_after_typed(boxes, i, threshold);
}

}  // namespace FASTRCNN_LEVEL
}  // namespace fastrcnn
