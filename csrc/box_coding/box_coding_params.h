// What the kernels of box coding work on: the arguments as plain numbers, and the result for one box and class. Free of
// torch.
#pragma once

#include <cstdint>

#include "../math/box.h"

namespace fastrcnn {

template <typename T>
struct DecodeParams {
  const Box<T>* boxes;   // [n]
  const Box<T>* deltas;  // [n, C]
  const T* max_shape;    // [n, 2] or [1, 2]: height, width; null: boxes are not clipped
  int64_t shape_stride;  // numbers from one box's max_shape to the next: 2 or 0
  int64_t num_boxes;     // n
  int64_t num_classes;   // C
  DeltaScale<T> scale;
};

// The box that class c of box i decodes to.
template <typename T>
HOST_DEVICE Box<T> decode_one(const DecodeParams<T>& p, int64_t i, int64_t c) {
  const Box<T> box = decode(p.boxes[i], p.deltas[i * p.num_classes + c], p.scale);
  if (!p.max_shape) return box;
  const T* shape = p.max_shape + i * p.shape_stride;
  return clip(box, shape[0], shape[1]);
}

// The gradient of the deltas of class c of box i, given that of the decoded box.
template <typename T>
HOST_DEVICE Box<T> decode_one_backward(const DecodeParams<T>& p, int64_t i, int64_t c, const Box<T>& grad) {
  const T* shape = p.max_shape ? p.max_shape + i * p.shape_stride : nullptr;
  return decode_backward(p.boxes[i], p.deltas[i * p.num_classes + c], p.scale, shape != nullptr,
                         shape ? shape[0] : T(0), shape ? shape[1] : T(0), grad);
}

}  // namespace fastrcnn
