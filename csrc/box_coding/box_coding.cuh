// Box coding on CUDA. A thread owns one box (encode), or one class of one box (decode and its backward pass); threads
// do not meet. The kernels move a few numbers per thread, so what remains to gain is in fusing them with their
// neighbours.
#pragma once

#include "../common/launch.h"
#include "box_coding_params.h"

namespace fastrcnn {

template <typename T>
struct EncodeBox {
  const Box<T>* boxes;
  const Box<T>* targets;
  DeltaScale<T> scale;
  Box<T>* out;

  __device__ void operator()(int64_t i) const { out[i] = encode(boxes[i], targets[i], scale); }
};

template <typename T>
struct DecodeBox {
  DecodeParams<T> p;
  Box<T>* out;

  __device__ void operator()(int64_t j) const { out[j] = decode_one(p, j / p.num_classes, j % p.num_classes); }
};

template <typename T>
struct DecodeBoxBackward {
  DecodeParams<T> p;
  const Box<T>* grad;
  Box<T>* out;

  __device__ void operator()(int64_t j) const {
    out[j] = decode_one_backward(p, j / p.num_classes, j % p.num_classes, grad[j]);
  }
};

// All pointers are to device memory. out: [n].
template <typename T>
void launch_encode_boxes(const Box<T>* boxes, const Box<T>* targets, int64_t n, const DeltaScale<T>& scale, Box<T>* out,
                         cudaStream_t stream) {
  for_each("encode_boxes", n, EncodeBox<T>{boxes, targets, scale, out}, stream);
}

// out: [n, C].
template <typename T>
void launch_decode_boxes(const DecodeParams<T>& p, Box<T>* out, cudaStream_t stream) {
  for_each("decode_boxes", p.num_boxes * p.num_classes, DecodeBox<T>{p, out}, stream);
}

// grad, out: [n, C].
template <typename T>
void launch_decode_boxes_backward(const DecodeParams<T>& p, const Box<T>* grad, Box<T>* out, cudaStream_t stream) {
  for_each("decode_boxes backward", p.num_boxes * p.num_classes, DecodeBoxBackward<T>{p, grad, out}, stream);
}

}  // namespace fastrcnn
