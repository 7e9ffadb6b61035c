// The hot loops of max-IoU assignment on the CPU (assignment_simd.inl): a block of boxes against objects.
#pragma once

#include "../math/box_arrays.h"
#include "../simd/level.h"
#include "assignment_params.h"

namespace fastrcnn {

constexpr int64_t kAssignBlock = 128;

// Boxes as separate arrays, small enough for the first-level cache; the first one fills what is missing at the end.
template <typename T>
struct BoxBlock {
  T x1[kAssignBlock], y1[kAssignBlock], x2[kAssignBlock], y2[kAssignBlock], area[kAssignBlock];
  T max_iou[kAssignBlock];
  int32_t best_gt[kAssignBlock];  // the first object that reaches max_iou, for positive boxes
  Box<T> bounds;                  // around all boxes; coordinates that are NaN do not count
};

// load_block: boxes[0 .. n), n <= kAssignBlock, which have met no object.
// meet_objects: the objects that the block's bounds overlap decide max_iou and best_gt. Writes their numbers, in order,
//   and the largest IoU of each with a box of the block, and returns how many they are; both arrays hold gt.count.
// assign_block: writes the result by the boxes' largest IoU alone.
// equal_iou: matches[i] = 1 where box i has exactly this IoU with object g, else 0.
#define FASTRCNN_ASSIGN_KERNELS(T)                                                                                 \
  void load_block(const Box<T>* boxes, int64_t n, BoxBlock<T>& block);                                             \
  int64_t meet_objects(BoxBlock<T>& block, const BoxArrays<T>& gt, T pos_iou, int32_t* met, T* largest);           \
  void assign_block(const BoxBlock<T>& block, int64_t n, const AssignParams<T>& p, int64_t* gt_index, T* max_iou); \
  void equal_iou(const BoxBlock<T>& block, const BoxArrays<T>& gt, int64_t g, T wanted, int32_t* matches);

FASTRCNN_DECLARE_SIMD(FASTRCNN_ASSIGN_KERNELS(float) FASTRCNN_ASSIGN_KERNELS(double))

#undef FASTRCNN_ASSIGN_KERNELS

}  // namespace fastrcnn
