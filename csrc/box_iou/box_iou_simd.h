// The hot loop of pairwise IoU on the CPU (box_iou_simd.inl): one box against many.
#pragma once

#include "../math/box_arrays.h"
#include "../simd/level.h"

namespace fastrcnn {

// out[j] = IoU of the box with boxes[j].
#define FASTRCNN_BOX_IOU_KERNELS(T) void iou_row(const Box<T>& box, const BoxArrays<T>& boxes, T* out);

FASTRCNN_DECLARE_SIMD(FASTRCNN_BOX_IOU_KERNELS(float) FASTRCNN_BOX_IOU_KERNELS(double))

#undef FASTRCNN_BOX_IOU_KERNELS

}  // namespace fastrcnn
