// The hot loops of max-IoU assignment on the CPU (assignment_simd.inl): one object against a block of boxes.
#pragma once

#include "../math/box.h"
#include "../simd/level.h"

namespace fastrcnn {

constexpr int64_t kAssignBlock = 256;

// Boxes as separate arrays, small enough for the first-level cache; padded with boxes that overlap nothing.
template <typename T>
struct BoxBlock {
  T x1[kAssignBlock], y1[kAssignBlock], x2[kAssignBlock], y2[kAssignBlock], area[kAssignBlock];
  T max_iou[kAssignBlock];
  int32_t best_gt[kAssignBlock];  // the first object that reaches max_iou
};

// meet_object: updates max_iou and best_gt with object g; returns the largest IoU that it has with a box of the block.
// equal_iou: matches[i] = 1 where box i has exactly this IoU with the object, else 0.
#define FASTRCNN_ASSIGN_KERNELS(T)                                           \
  T meet_object(BoxBlock<T>& block, const Box<T>& gt, T gt_area, int32_t g); \
  void equal_iou(const BoxBlock<T>& block, const Box<T>& gt, T gt_area, T wanted, int32_t* matches);

FASTRCNN_DECLARE_SIMD(FASTRCNN_ASSIGN_KERNELS(float) FASTRCNN_ASSIGN_KERNELS(double))

#undef FASTRCNN_ASSIGN_KERNELS

}  // namespace fastrcnn
