// Which object each box is responsible for, by IoU (the max-IoU rule of Faster R-CNN, section 3.1.2, as in
// mmdetection).
//
//   assign_max_iou(boxes, gt_boxes, pos_iou, neg_iou, min_pos_iou, match_low_quality) -> (gt_index, max_iou)
//
// boxes [n, 4] and gt_boxes [G, 4], both float32 or both float64. For each box, with m its largest IoU (math/box.h:
// iou) and g the first object that reaches it: gt_index = g + 1 if m >= pos_iou, 0 (negative) if m < neg_iou, else -1
// (ignored). Then, with match_low_quality, for each object in order whose own largest IoU reaches min_pos_iou: all
// boxes that have exactly this IoU with it get it, later objects overwriting earlier ones.
// Thresholds are compared in the boxes' type. Without objects all boxes are negative.
#pragma once

#include "../common/tensor.h"
#include "assignment_params.h"

namespace fastrcnn {

inline void check_assign(const Tensor& boxes, const Tensor& gt_boxes, double pos_iou, double neg_iou,
                         double min_pos_iou) {
  check_shape(boxes, "boxes", "[n, 4]", {-1, 4});
  check_shape(gt_boxes, "gt_boxes", "[G, 4]", {-1, 4});
  check_coordinates(boxes, "boxes");
  check_dtype(gt_boxes, "gt_boxes", boxes.scalar_type());
  check_same_device(gt_boxes, "gt_boxes", boxes, "boxes");
  check_threshold(pos_iou, "pos_iou");
  check_threshold(neg_iou, "neg_iou");
  check_threshold(min_pos_iou, "min_pos_iou");
  FASTRCNN_CHECK(neg_iou <= pos_iou, "neg_iou: expected at most pos_iou (", pos_iou, "), got ", neg_iou);
}

// Both tensors contiguous.
template <typename T>
AssignParams<T> assign_params(const Tensor& boxes, const Tensor& gt_boxes, double pos_iou, double neg_iou,
                              double min_pos_iou, bool match_low_quality) {
  AssignParams<T> p{};
  p.boxes = reinterpret_cast<const Box<T>*>(boxes.const_data_ptr<T>());
  p.gt_boxes = reinterpret_cast<const Box<T>*>(gt_boxes.const_data_ptr<T>());
  p.num_boxes = boxes.size(0);
  p.num_gt = gt_boxes.size(0);
  p.pos_iou = static_cast<T>(pos_iou);
  p.neg_iou = static_cast<T>(neg_iou);
  p.min_pos_iou = static_cast<T>(min_pos_iou);
  p.match_low_quality = match_low_quality;
  return p;
}

}  // namespace fastrcnn
