// IoU losses on CUDA. A thread owns one box, forward and backward; threads do not meet. One launch replaces the twenty
// to sixty of a chain of tensor operations; what remains is reading 32 bytes per box and writing 20 (bounded_iou 32).
#pragma once

#include "../common/launch.h"
#include "iou_loss_params.h"

namespace fastrcnn {

template <IouLossKind kind, typename T>
struct ComputeLoss {
  IouLossParams<T> p;

  __device__ void operator()(int64_t i) const { compute_loss<kind>(p, i); }
};

template <bool bounded, typename T>
struct ScaleDerivative {
  IouLossBackwardParams<T> p;

  __device__ void operator()(int64_t i) const { p.out[i] = scale_derivative<bounded>(p, i); }
};

template <IouLossKind kind, typename T>
void launch_iou_loss_of(const IouLossParams<T>& p, cudaStream_t stream) {
  for_each("iou_loss", p.num_boxes, ComputeLoss<kind, T>{p}, stream);
}

// All pointers are to device memory.
template <typename T>
void launch_iou_loss(const IouLossParams<T>& p, cudaStream_t stream) {
  switch (p.kind) {
    case IouLossKind::iou_log: return launch_iou_loss_of<IouLossKind::iou_log>(p, stream);
    case IouLossKind::iou_linear: return launch_iou_loss_of<IouLossKind::iou_linear>(p, stream);
    case IouLossKind::iou_square: return launch_iou_loss_of<IouLossKind::iou_square>(p, stream);
    case IouLossKind::giou: return launch_iou_loss_of<IouLossKind::giou>(p, stream);
    case IouLossKind::diou: return launch_iou_loss_of<IouLossKind::diou>(p, stream);
    case IouLossKind::ciou: return launch_iou_loss_of<IouLossKind::ciou>(p, stream);
    case IouLossKind::bounded_iou: return launch_iou_loss_of<IouLossKind::bounded_iou>(p, stream);
  }
}

// bounded: four terms per box, as bounded_iou has them.
template <typename T>
void launch_iou_loss_backward(const IouLossBackwardParams<T>& p, bool bounded, cudaStream_t stream) {
  if (bounded) {
    for_each("iou_loss backward", p.num_boxes, ScaleDerivative<true, T>{p}, stream);
  } else {
    for_each("iou_loss backward", p.num_boxes, ScaleDerivative<false, T>{p}, stream);
  }
}

}  // namespace fastrcnn
