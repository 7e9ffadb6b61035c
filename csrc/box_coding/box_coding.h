// Boxes as deltas relative to other boxes (math/box.h: encode, decode).
//
//   encode_boxes(boxes, targets, means, stds) -> deltas [n, 4]
//   decode_boxes(boxes, deltas, means, stds, max_shape) -> boxes [n, 4 * C]
//   _decode_boxes_backward(grad, boxes, deltas, means, stds, max_shape) -> gradient of deltas [n, 4 * C]
//
// boxes, targets [n, 4]; deltas [n, 4 * C]: C independent sets per box; max_shape [n, 2], [1, 2] or None: height and
// width of the image that each box is clipped to. All of one type, float32 or float64.
#pragma once

#include "../common/tensor.h"
#include "box_coding_params.h"

namespace fastrcnn {

template <typename T>
DeltaScale<T> delta_scale(const std::vector<double>& means, const std::vector<double>& stds) {
  FASTRCNN_CHECK(means.size() == 4, "means: expected 4 numbers (dx, dy, dw, dh), got ", means.size());
  FASTRCNN_CHECK(stds.size() == 4, "stds: expected 4 numbers (dx, dy, dw, dh), got ", stds.size());
  DeltaScale<T> scale;
  for (size_t i = 0; i < 4; ++i) {
    scale.mean[i] = static_cast<T>(means[i]);
    scale.std[i] = static_cast<T>(stds[i]);
  }
  return scale;
}

inline void check_encode(const Tensor& boxes, const Tensor& targets) {
  check_shape(boxes, "boxes", "[n, 4]", {-1, 4});
  check_coordinates(boxes, "boxes");
  check_shape(targets, "targets", "[n, 4], one target per box", {boxes.size(0), 4});
  check_dtype(targets, "targets", boxes.scalar_type());
  check_same_device(targets, "targets", boxes, "boxes");
}

inline void check_decode(const Tensor& boxes, const Tensor& deltas, const std::optional<Tensor>& max_shape) {
  check_shape(boxes, "boxes", "[n, 4]", {-1, 4});
  check_coordinates(boxes, "boxes");
  check_shape(deltas, "deltas", "[n, 4 * C], one row per box", {boxes.size(0), -1});
  FASTRCNN_CHECK(deltas.size(1) % 4 == 0, "deltas: expected shape [n, 4 * C], got ", shape_text(deltas));
  check_dtype(deltas, "deltas", boxes.scalar_type());
  check_same_device(deltas, "deltas", boxes, "boxes");
  if (!max_shape) return;
  check_shape(*max_shape, "max_shape", "[n, 2] or [1, 2] (height, width)", {-1, 2});
  FASTRCNN_CHECK(max_shape->size(0) == 1 || max_shape->size(0) == boxes.size(0),
                 "max_shape: expected one row or one per box (", boxes.size(0), "), got ", max_shape->size(0));
  check_dtype(*max_shape, "max_shape", boxes.scalar_type());
  check_same_device(*max_shape, "max_shape", boxes, "boxes");
}

// All tensors contiguous.
template <typename T>
DecodeParams<T> decode_params(const Tensor& boxes, const Tensor& deltas, const std::optional<Tensor>& max_shape,
                              const std::vector<double>& means, const std::vector<double>& stds) {
  DecodeParams<T> p{};
  p.boxes = reinterpret_cast<const Box<T>*>(boxes.const_data_ptr<T>());
  p.deltas = reinterpret_cast<const Box<T>*>(deltas.const_data_ptr<T>());
  p.max_shape = max_shape ? max_shape->const_data_ptr<T>() : nullptr;
  p.shape_stride = max_shape && max_shape->size(0) > 1 ? 2 : 0;
  p.num_boxes = boxes.size(0);
  p.num_classes = deltas.size(1) / 4;
  p.scale = delta_scale<T>(means, stds);
  return p;
}

}  // namespace fastrcnn
