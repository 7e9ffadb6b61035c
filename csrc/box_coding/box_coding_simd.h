// The loops of box coding on the CPU (box_coding_simd.inl), over a range of boxes or of pairs of box and class.
#pragma once

#include "../simd/level.h"
#include "box_coding_params.h"

namespace fastrcnn {

// encode_range: out[i] for i in [first, last).
// decode_range, decode_backward_range: out[j] for pairs j = i * C + c in [first, last); grad as out.
#define FASTRCNN_BOX_CODING_KERNELS(T)                                                                     \
  void encode_range(const Box<T>* boxes, const Box<T>* targets, const DeltaScale<T>& scale, int64_t first, \
                    int64_t last, Box<T>* out);                                                            \
  void decode_range(const DecodeParams<T>& p, int64_t first, int64_t last, Box<T>* out);                   \
  void decode_backward_range(const DecodeParams<T>& p, const Box<T>* grad, int64_t first, int64_t last, Box<T>* out);

FASTRCNN_DECLARE_SIMD(FASTRCNN_BOX_CODING_KERNELS(float) FASTRCNN_BOX_CODING_KERNELS(double))

#undef FASTRCNN_BOX_CODING_KERNELS

}  // namespace fastrcnn
