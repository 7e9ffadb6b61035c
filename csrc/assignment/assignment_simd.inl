// The hot loops of max-IoU assignment, compiled once per SIMD level. Both compute IoU by the same code and so to the
// same bits, which the low-quality matches need.
namespace fastrcnn {
namespace FASTRCNN_LEVEL {

template <typename T>
FASTRCNN_INLINE T block_iou(const BoxBlock<T>& block, int64_t i, const Box<T>& gt, T gt_area) {
  return iou(gt, gt_area, Box<T>{block.x1[i], block.y1[i], block.x2[i], block.y2[i]}, block.area[i]);
}

template <typename T>
FASTRCNN_INLINE T meet_object_typed(BoxBlock<T>& block, const Box<T>& gt, T gt_area, int32_t g) {
  T overlaps[kAssignBlock];
  for (int64_t i = 0; i < kAssignBlock; ++i) overlaps[i] = block_iou(block, i, gt, gt_area);
  for (int64_t i = 0; i < kAssignBlock; ++i) {
    const bool better = overlaps[i] > block.max_iou[i];
    block.max_iou[i] = better ? overlaps[i] : block.max_iou[i];
    block.best_gt[i] = better ? g : block.best_gt[i];
  }
  T largest[kLanes<T>] = {};  // a maximum per lane, then over the lanes: any order gives the same
  for (int64_t i = 0; i < kAssignBlock; i += kLanes<T>) {
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) largest[lane] = maximum(largest[lane], overlaps[i + lane]);
  }
  for (int64_t lane = 1; lane < kLanes<T>; ++lane) largest[0] = maximum(largest[0], largest[lane]);
  return largest[0];
}

template <typename T>
FASTRCNN_INLINE void equal_iou_typed(const BoxBlock<T>& block, const Box<T>& gt, T gt_area, T wanted,
                                     int32_t* matches) {
  for (int64_t i = 0; i < kAssignBlock; ++i) matches[i] = block_iou(block, i, gt, gt_area) == wanted;
}

float meet_object(BoxBlock<float>& block, const Box<float>& gt, float gt_area, int32_t g) {
  return meet_object_typed(block, gt, gt_area, g);
}
double meet_object(BoxBlock<double>& block, const Box<double>& gt, double gt_area, int32_t g) {
  return meet_object_typed(block, gt, gt_area, g);
}
void equal_iou(const BoxBlock<float>& block, const Box<float>& gt, float gt_area, float wanted, int32_t* matches) {
  equal_iou_typed(block, gt, gt_area, wanted, matches);
}
void equal_iou(const BoxBlock<double>& block, const Box<double>& gt, double gt_area, double wanted, int32_t* matches) {
  equal_iou_typed(block, gt, gt_area, wanted, matches);
}

}  // namespace FASTRCNN_LEVEL
}  // namespace fastrcnn
