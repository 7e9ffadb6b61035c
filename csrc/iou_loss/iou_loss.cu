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
  pred = torch::stable::contiguous(pred);
  target = torch::stable::contiguous(target);
  Tensor loss = new_loss(pred, loss_kind);
  Tensor derivative = new_tensor(pred, {pred.size(0), 4}, pred.scalar_type());
  if (pred.scalar_type() == ScalarType::Double) {
    launch_iou_loss(iou_loss_params<double>(pred, target, loss_kind, eps, beta, loss, derivative), stream);
  } else {
    launch_iou_loss(iou_loss_params<float>(pred, target, loss_kind, eps, beta, loss, derivative), stream);
  }
  return {loss, derivative};
}

template <typename T>
void scale(const Tensor& grad, const Tensor& derivative, Tensor& out) {
  const CurrentStream stream(derivative);
  auto* const result = reinterpret_cast<Box<T>*>(out.mutable_data_ptr<T>());
  const T* const derivatives = derivative.const_data_ptr<T>();
  if (grad.dim() == 2) {
    launch_iou_loss_backward<true>(derivatives, grad.const_data_ptr<T>(), out.size(0), result, stream);
  } else {
    launch_iou_loss_backward<false>(derivatives, grad.const_data_ptr<T>(), out.size(0), result, stream);
  }
}

Tensor iou_loss_backward_cuda(Tensor grad, Tensor derivative) {
  check_iou_loss_backward(grad, derivative);
  grad = torch::stable::contiguous(grad);
  derivative = torch::stable::contiguous(derivative);
  Tensor out = new_tensor(derivative, {derivative.size(0), 4}, derivative.scalar_type());
  if (derivative.scalar_type() == ScalarType::Double) {
    scale<double>(grad, derivative, out);
  } else {
    scale<float>(grad, derivative, out);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CUDA, m) {
  m.impl("iou_loss", TORCH_BOX(&iou_loss_cuda));
  m.impl("_iou_loss_backward", TORCH_BOX(&iou_loss_backward_cuda));
}

}  // namespace fastrcnn
