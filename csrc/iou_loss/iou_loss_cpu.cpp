// IoU losses on the CPU: threads own boxes, vectors hold one box per lane (iou_loss_simd.inl). Boxes do not meet, so
// the result does not depend on the number of threads.
#include "iou_loss.h"

#include "iou_loss_simd.h"

namespace fastrcnn {
namespace {

constexpr int64_t kBoxesPerThread = 16384;  // 50 microseconds of work; below this waking a thread costs more

template <typename T>
void compute(const IouLossParams<T>& p) {
  torch::stable::parallel_for(0, p.num_boxes, kBoxesPerThread,
                              [&](int64_t first, int64_t last) { FASTRCNN_SIMD(compute_losses, p, first, last); });
}

template <bool bounded, typename T>
void scale(const IouLossBackwardParams<T>& p) {
  torch::stable::parallel_for(0, p.num_boxes, kBoxesPerThread, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) p.out[i] = scale_derivative<bounded>(p, i);
  });
}

template <typename T>
void scale_typed(const Tensor& grad, const Tensor& derivative, Tensor& out) {
  const auto p = iou_loss_backward_params<T>(grad, derivative, out);
  grad.dim() == 2 ? scale<true>(p) : scale<false>(p);
}

std::tuple<Tensor, Tensor> iou_loss_cpu(Tensor pred, Tensor target, std::string kind, std::string mode, double eps,
                                        double beta) {
  simd_level();  // a wrong FASTRCNN_SIMD is reported here and not from within a thread
  const IouLossKind loss_kind = iou_loss_kind(kind, mode);
  check_iou_loss(pred, target, eps, beta);
  pred = dense(pred);
  target = dense(target);
  Tensor loss = new_loss(pred, loss_kind);
  Tensor derivative = new_tensor(pred, {pred.size(0), 4}, pred.scalar_type());
  if (pred.scalar_type() == ScalarType::Double) {
    compute(iou_loss_params<double>(pred, target, loss_kind, eps, beta, loss, derivative));
  } else {
    compute(iou_loss_params<float>(pred, target, loss_kind, eps, beta, loss, derivative));
  }
  return {loss, derivative};
}

Tensor iou_loss_backward_cpu(Tensor grad, Tensor derivative) {
  check_iou_loss_backward(grad, derivative);
  derivative = dense(derivative);
  Tensor out = new_tensor(derivative, {derivative.size(0), 4}, derivative.scalar_type());
  if (derivative.scalar_type() == ScalarType::Double) {
    scale_typed<double>(grad, derivative, out);
  } else {
    scale_typed<float>(grad, derivative, out);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CPU, m) {
  m.impl("iou_loss", TORCH_BOX(&iou_loss_cpu));
  m.impl("_iou_loss", TORCH_BOX(&iou_loss_cpu));
  m.impl("_iou_loss_backward", TORCH_BOX(&iou_loss_backward_cpu));
}

}  // namespace fastrcnn
