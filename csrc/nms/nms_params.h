// What the kernels of NMS work on: the arguments as plain numbers. Free of torch.
#pragma once

#include <cstdint>

#include "../math/box.h"

namespace fastrcnn {

template <typename T>
struct NmsParams {
  const Box<T>* boxes;       // [N, M]
  const T* scores;           // [N, M]
  const int64_t* class_ids;  // [N, M] or null
  const bool* valid;         // [N, M] or null
  int64_t num_images;        // N
  int64_t num_candidates;    // M, per image
  int64_t max_segment;       // no class of an image has more valid candidates than this; M if nothing is known
  int class_bits;            // classes differ in these low bits of their ids, or max_segment is M
  int64_t max_output;        // K
  T threshold;               // round_down of the user's double
};

}  // namespace fastrcnn
