// The hot loop of pairwise IoU, compiled once per SIMD level.
namespace fastrcnn {
namespace FASTRCNN_LEVEL {

template <typename T>
FASTRCNN_INLINE void iou_row_typed(const Box<T>& row, const BoxArrays<T>& boxes, T* __restrict__ out) {
  const Box<T> box = row;
  const T box_area = area(box);
  const T *x1 = boxes.x1, *y1 = boxes.y1, *x2 = boxes.x2, *y2 = boxes.y2, *areas = boxes.area;
  for (int64_t j = 0; j < boxes.count; ++j) out[j] = iou(box, box_area, Box<T>{x1[j], y1[j], x2[j], y2[j]}, areas[j]);
}

void iou_row(const Box<float>& box, const BoxArrays<float>& boxes, float* out) { iou_row_typed(box, boxes, out); }
void iou_row(const Box<double>& box, const BoxArrays<double>& boxes, double* out) { iou_row_typed(box, boxes, out); }

}  // namespace FASTRCNN_LEVEL
}  // namespace fastrcnn
