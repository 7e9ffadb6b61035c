// The hot loops of the IoU losses on the CPU (iou_loss_simd.inl).
#pragma once

#include "../simd/level.h"
#include "iou_loss_params.h"

namespace fastrcnn {

// Loss and derivative of the boxes [first, last).
#define FASTRCNN_IOU_LOSS_KERNELS(T) void compute_losses(const IouLossParams<T>& p, int64_t first, int64_t last);

FASTRCNN_DECLARE_SIMD(FASTRCNN_IOU_LOSS_KERNELS(float) FASTRCNN_IOU_LOSS_KERNELS(double))

#undef FASTRCNN_IOU_LOSS_KERNELS

}  // namespace fastrcnn
