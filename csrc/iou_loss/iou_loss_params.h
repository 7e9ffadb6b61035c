// What the kernels of the IoU losses work on: the arguments as plain pointers, and the result for one box. Free of
// torch.
#pragma once

#include <cstdint>

#include "../math/iou_loss.h"

namespace fastrcnn {

// Everything [n] or [n, 4].
template <typename T>
struct IouLossParams {
  const Box<T>* pred;
  const Box<T>* target;
  int64_t num_boxes;
  IouLossKind kind;
  T eps, beta;
  T* loss;        // one number per box; four for bounded_iou
  T* derivative;  // four numbers per box: d loss / d (x1, y1, x2, y2); for bounded_iou of each term, by its own number
};

// Writes loss and derivative of box i.
template <IouLossKind kind, typename T>
HOST_DEVICE void compute_loss(const IouLossParams<T>& p, int64_t i) {
  T* const d = p.derivative + 4 * i;
  if constexpr (kind == IouLossKind::bounded_iou) {
    const BoundedLoss<T> result = bounded_loss(p.pred[i], p.target[i], p.eps, p.beta);
    T* const terms = p.loss + 4 * i;
    terms[0] = result.loss[0], terms[1] = result.loss[1], terms[2] = result.loss[2], terms[3] = result.loss[3];
    d[0] = result.slope[0], d[1] = result.slope[1], d[2] = result.slope[2], d[3] = result.slope[3];
  } else {
    const LossAndGradient<T> result = overlap_loss<kind>(p.pred[i], p.target[i], p.eps);
    p.loss[i] = result.loss;
    d[0] = result.gradient.x1, d[1] = result.gradient.y1, d[2] = result.gradient.x2, d[3] = result.gradient.y2;
  }
}

// What the backward pass works on: derivative [n, 4] of the forward pass, and the gradient of the loss, whose strides
// may be 0: that of a sum is one number for all boxes.
template <typename T>
struct IouLossBackwardParams {
  const T* derivative;
  const T* grad;
  int64_t box_stride, term_stride;  // of grad
  int64_t num_boxes;
  Box<T>* out;  // [n]: the gradient of the prediction
};

// The gradient of the prediction of box i: its derivative times that of the loss. `bounded`: four terms per box.
template <bool bounded, typename T>
HOST_DEVICE Box<T> scale_derivative(const IouLossBackwardParams<T>& p, int64_t i) {
  const T* const d = p.derivative + 4 * i;
  const T* const g = p.grad + i * p.box_stride;
  if constexpr (bounded) {
    return corners_from_centre_and_size(d[0] * g[0], d[1] * g[p.term_stride], d[2] * g[2 * p.term_stride],
                                        d[3] * g[3 * p.term_stride]);
  } else {
    return {d[0] * g[0], d[1] * g[0], d[2] * g[0], d[3] * g[0]};
  }
}

}  // namespace fastrcnn
