// What the kernels of assignment work on: the arguments as plain numbers, and the rule for one box. Free of torch.
#pragma once

#include <cstdint>

#include "../math/box.h"

namespace fastrcnn {

template <typename T>
struct AssignParams {
  const Box<T>* boxes;     // [n]
  const Box<T>* gt_boxes;  // [G]
  int64_t num_boxes;       // n
  int64_t num_gt;          // G
  T pos_iou, neg_iou, min_pos_iou;
  bool match_low_quality;
};

// The rule for a box by its largest IoU alone; best_gt: the first object that reaches it.
template <typename T>
HOST_DEVICE int64_t assign_by_max(const AssignParams<T>& p, T max_iou, int64_t best_gt) {
  if (p.num_gt > 0 && max_iou >= p.pos_iou) return best_gt + 1;
  return max_iou < p.neg_iou || p.num_gt == 0 ? 0 : -1;
}

}  // namespace fastrcnn
