// Losses on the overlap of predicted and target boxes (math/iou_loss.h).
//
//   iou_loss(pred, target, kind, mode, eps, beta) -> (loss, derivative)
//   _iou_loss(...): the same without a gradient of its own
//   _iou_loss_backward(grad, derivative) -> gradient of pred [n, 4]
//
// pred, target [n, 4], both float32 or both float64. kind: iou, giou, diou, ciou or bounded_iou; mode: log, linear or
// square, used by iou only; beta: used by bounded_iou only. loss [n], or [n, 4] for bounded_iou. The forward pass also
// computes the derivative [n, 4]: by the corners of the box, or, for bounded_iou, of each term by the one number that
// it depends on (centre x, centre y, width, height). So all that is left for the backward pass is to multiply by it.
#pragma once

#include <string_view>

#include "../common/tensor.h"
#include "iou_loss_params.h"

namespace fastrcnn {

inline IouLossKind iou_loss_kind(std::string_view kind, std::string_view mode) {
  FASTRCNN_CHECK(mode == "log" || mode == "linear" || mode == "square", "mode: expected log, linear or square, got ",
                 mode);
  if (kind == "giou") return IouLossKind::giou;
  if (kind == "diou") return IouLossKind::diou;
  if (kind == "ciou") return IouLossKind::ciou;
  if (kind == "bounded_iou") return IouLossKind::bounded_iou;
  FASTRCNN_CHECK(kind == "iou", "kind: expected iou, giou, diou, ciou or bounded_iou, got ", kind);
  return mode == "log" ? IouLossKind::iou_log : mode == "linear" ? IouLossKind::iou_linear : IouLossKind::iou_square;
}

inline void check_iou_loss(const Tensor& pred, const Tensor& target, double eps, double beta) {
  check_shape(pred, "pred", "[n, 4]", {-1, 4});
  check_coordinates(pred, "pred");
  check_shape(target, "target", "[n, 4], one target per box", {pred.size(0), 4});
  check_dtype(target, "target", pred.scalar_type());
  check_same_device(target, "target", pred, "pred");
  const auto check = pred.scalar_type() == ScalarType::Double ? &check_positive<double> : &check_positive<float>;
  check(eps, "eps", "a positive number");
  check(beta, "beta", "a positive number");
}

// [n], or [n, 4] where each coordinate has a loss of its own.
inline Tensor new_loss(const Tensor& pred, IouLossKind kind) {
  const int64_t n = pred.size(0);
  return kind == IouLossKind::bounded_iou ? new_tensor(pred, {n, 4}, pred.scalar_type())
                                          : new_tensor(pred, {n}, pred.scalar_type());
}

// All tensors contiguous.
template <typename T>
IouLossParams<T> iou_loss_params(const Tensor& pred, const Tensor& target, IouLossKind kind, double eps, double beta,
                                 Tensor& loss, Tensor& derivative) {
  return {reinterpret_cast<const Box<T>*>(pred.const_data_ptr<T>()),
          reinterpret_cast<const Box<T>*>(target.const_data_ptr<T>()),
          pred.size(0),
          kind,
          static_cast<T>(eps),
          static_cast<T>(beta),
          loss.mutable_data_ptr<T>(),
          derivative.mutable_data_ptr<T>()};
}

inline void check_iou_loss_backward(const Tensor& grad, const Tensor& derivative) {
  check_shape(derivative, "derivative", "[n, 4]", {-1, 4});
  if (grad.dim() == 1) {
    check_shape(grad, "grad", "that of the loss", {derivative.size(0)});
  } else {
    check_shape(grad, "grad", "that of the loss", {derivative.size(0), 4});
  }
  check_dtype(grad, "grad", derivative.scalar_type());
  check_same_device(grad, "grad", derivative, "derivative");
}

// `derivative` contiguous; `grad` is read where it lies.
template <typename T>
IouLossBackwardParams<T> iou_loss_backward_params(const Tensor& grad, const Tensor& derivative, Tensor& out) {
  return {derivative.const_data_ptr<T>(),
          grad.const_data_ptr<T>(),
          grad.stride(0),
          grad.dim() == 2 ? grad.stride(1) : 0,
          out.size(0),
          reinterpret_cast<Box<T>*>(out.mutable_data_ptr<T>())};
}

}  // namespace fastrcnn
