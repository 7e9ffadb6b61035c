// IoU losses as CUDA operators: checks, allocation, launch.
#include "iou_loss.h"

#include "../common/current_stream.h"
#include "iou_loss.cuh"

namespace fastrcnn {
namespace {

std::tuple<Tensor, Tensor> iou_loss_cuda(Tensor pred, Tensor target, std::string kind, std::string mode, double eps,
                                         double beta) {
  const IouLossKind loss_kind = iou_loss_kind(kind, mode);
  check_iou_loss(pred, target, eps, beta);
  const CurrentStream stream(pred);
  pred = dense(pred);
  target = dense(target);
  Tensor loss = new_loss(pred, loss_kind);
  Tensor derivative = new_tensor(pred, {pred.size(0), 4}, pred.scalar_type());
  if (pred.scalar_type() == ScalarType::Double) {
    launch_iou_loss(iou_loss_params<double>(pred, target, loss_kind, eps, beta, loss, derivative), stream);
  } else {
    launch_iou_loss(iou_loss_params<float>(pred, target, loss_kind, eps, beta, loss, derivative), stream);
  }
  return {loss, derivative};
}

Tensor iou_loss_backward_cuda(Tensor grad, Tensor derivative) {
  check_iou_loss_backward(grad, derivative);
  const CurrentStream stream(derivative);
  derivative = dense(derivative);
  Tensor out = new_tensor(derivative, {derivative.size(0), 4}, derivative.scalar_type());
  const bool bounded = grad.dim() == 2;
  if (derivative.scalar_type() == ScalarType::Double) {
    launch_iou_loss_backward(iou_loss_backward_params<double>(grad, derivative, out), bounded, stream);
  } else {
    launch_iou_loss_backward(iou_loss_backward_params<float>(grad, derivative, out), bounded, stream);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CUDA, m) {
  m.impl("iou_loss", TORCH_BOX(&iou_loss_cuda));
  m.impl("_iou_loss", TORCH_BOX(&iou_loss_cuda));
  m.impl("_iou_loss_backward", TORCH_BOX(&iou_loss_backward_cuda));
}

}  // namespace fastrcnn
