// Anchors on CUDA. A thread owns one anchor; base anchors are few and stay in the cache.
#pragma once

#include "../common/launch.h"
#include "anchors_math.h"

namespace fastrcnn {

template <typename T>
struct WriteGridAnchor {
  const Box<T>* base;   // [A]
  int64_t num_anchors;  // A
  int64_t width;        // cells
  T stride;
  Box<T>* out;

  __device__ void operator()(int64_t i) const { out[i] = grid_anchor(base, num_anchors, width, stride, i); }
};

// All pointers are to device memory; out: [height * width * A].
template <typename T>
void launch_grid_anchors(const Box<T>* base, int64_t num_anchors, int64_t height, int64_t width, T stride, Box<T>* out,
                         cudaStream_t stream) {
  for_each("grid_anchors", height * width * num_anchors, WriteGridAnchor<T>{base, num_anchors, width, stride, out},
           stream);
}

}  // namespace fastrcnn
