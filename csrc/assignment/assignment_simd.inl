// The hot loops of max-IoU assignment, compiled once per SIMD level. All compute IoU by the same code and so to the
// same bits, which the low-quality matches need.
namespace fastrcnn {
namespace FASTRCNN_LEVEL {

// The largest number of a block; NaN does not count.
template <typename T>
FASTRCNN_INLINE T largest_of(const T* values) {
  Vec<T> largest = Vec<T>{} - T(INFINITY);
  for (int64_t i = 0; i < kAssignBlock; i += kLanes<T>) {
    const Vec<T> next = load(values + i);
    largest = next > largest ? next : largest;
  }
  return largest_lane(largest);
}

template <typename T>
FASTRCNN_INLINE T smallest_of(const T* values) {
  Vec<T> smallest = Vec<T>{} + T(INFINITY);
  for (int64_t i = 0; i < kAssignBlock; i += kLanes<T>) {
    const Vec<T> next = load(values + i);
    smallest = next < smallest ? next : smallest;
  }
  return -largest_lane(-smallest);
}

template <typename T>
FASTRCNN_INLINE void load_block_typed(const Box<T>* boxes, int64_t n, BoxBlock<T>& block) {
  Box<T> filled[kAssignBlock];
  if (n < kAssignBlock) {
    for (int64_t i = 0; i < kAssignBlock; ++i) filled[i] = boxes[i < n ? i : 0];
    boxes = filled;
  }
  for (int64_t i = 0; i < kAssignBlock; ++i) {
    const Box<T> box = boxes[i];
    block.x1[i] = box.x1, block.y1[i] = box.y1, block.x2[i] = box.x2, block.y2[i] = box.y2;
    block.area[i] = area(box);
  }
  for (int64_t i = 0; i < kAssignBlock; ++i) block.max_iou[i] = T(0), block.best_gt[i] = 0;
  block.bounds = {smallest_of(block.x1), smallest_of(block.y1), largest_of(block.x2), largest_of(block.y2)};
}

template <typename T>
FASTRCNN_INLINE T block_iou(const BoxBlock<T>& block, int64_t i, const Box<T>& gt, T gt_area) {
  return iou(gt, gt_area, Box<T>{block.x1[i], block.y1[i], block.x2[i], block.y2[i]}, block.area[i]);
}

template <typename T>
FASTRCNN_INLINE Box<T> gt_box(const BoxArrays<T>& gt, int64_t g) {
  return {gt.x1[g], gt.y1[g], gt.x2[g], gt.y2[g]};
}

template <typename T>
FASTRCNN_INLINE T meet_object(BoxBlock<T>& block, const Box<T>& gt, T gt_area) {
  T overlaps[kAssignBlock];
  for (int64_t i = 0; i < kAssignBlock; ++i) {
    overlaps[i] = block_iou(block, i, gt, gt_area);
    block.max_iou[i] = maximum(overlaps[i], block.max_iou[i]);
  }
  return largest_of(overlaps);
}

template <typename T>
FASTRCNN_INLINE int64_t meet_objects_typed(BoxBlock<T>& block, const BoxArrays<T>& gt, T pos_iou, int32_t* met,
                                           T* largest) {
  // An object outside the bounds has IoU 0 with every box of the block, and so has one with NaN. Whether it is near is
  // asked of all objects first, which is vectorised; then the near ones are pushed together.
  const Box<T> bounds = block.bounds;
  for (int64_t g = 0; g < gt.count; ++g) {
    const bool apart =
        (gt.x1[g] >= bounds.x2) | (gt.x2[g] <= bounds.x1) | (gt.y1[g] >= bounds.y2) | (gt.y2[g] <= bounds.y1);
    met[g] = apart ? 0 : 1;
  }
  int64_t num_met = 0;
  for (int64_t g = 0; g < gt.count; ++g) {
    const int32_t near = met[g];
    met[num_met] = static_cast<int32_t>(g);
    num_met += near;
  }
  for (int64_t k = 0; k < num_met; ++k) largest[k] = meet_object(block, gt_box(gt, met[k]), gt.area[met[k]]);
  // Which object is the best matters to positive boxes only, which are few; the first of equal ones is set last.
  for (int64_t k = num_met - 1; k >= 0; --k) {
    if (!(largest[k] >= pos_iou)) continue;
    const Box<T> box = gt_box(gt, met[k]);
    for (int64_t i = 0; i < kAssignBlock; ++i) {
      const T overlap = block_iou(block, i, box, gt.area[met[k]]);
      block.best_gt[i] = (overlap == block.max_iou[i]) & (overlap > T(0)) ? met[k] : block.best_gt[i];
    }
  }
  return num_met;
}

template <typename T>
FASTRCNN_INLINE void assign_block_typed(const BoxBlock<T>& block, int64_t n, const AssignParams<T>& p,
                                        int64_t* gt_index, T* max_iou) {
  const AssignParams<T> params = p;
  for (int64_t i = 0; i < n; ++i) gt_index[i] = assign_by_max(params, block.max_iou[i], block.best_gt[i]);
  for (int64_t i = 0; i < n; ++i) max_iou[i] = block.max_iou[i];
}

template <typename T>
FASTRCNN_INLINE void equal_iou_typed(const BoxBlock<T>& block, const Box<T>& gt, T gt_area, T wanted,
                                     int32_t* matches) {
  for (int64_t i = 0; i < kAssignBlock; ++i) matches[i] = block_iou(block, i, gt, gt_area) == wanted;
}

#define FASTRCNN_ASSIGN_KERNELS(T)                                                                                  \
  void load_block(const Box<T>* boxes, int64_t n, BoxBlock<T>& block) { load_block_typed(boxes, n, block); }        \
  int64_t meet_objects(BoxBlock<T>& block, const BoxArrays<T>& gt, T pos_iou, int32_t* met, T* largest) {           \
    return meet_objects_typed(block, gt, pos_iou, met, largest);                                                    \
  }                                                                                                                 \
  void assign_block(const BoxBlock<T>& block, int64_t n, const AssignParams<T>& p, int64_t* gt_index, T* max_iou) { \
    assign_block_typed(block, n, p, gt_index, max_iou);                                                             \
  }                                                                                                                 \
  void equal_iou(const BoxBlock<T>& block, const BoxArrays<T>& gt, int64_t g, T wanted, int32_t* matches) {         \
    equal_iou_typed(block, gt_box(gt, g), gt.area[g], wanted, matches);                                             \
  }

FASTRCNN_ASSIGN_KERNELS(float)
FASTRCNN_ASSIGN_KERNELS(double)

#undef FASTRCNN_ASSIGN_KERNELS

}  // namespace FASTRCNN_LEVEL
}  // namespace fastrcnn
