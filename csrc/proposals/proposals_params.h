// What the kernels of proposals work on: a level as plain numbers, and the numbers of a proposal. Free of torch.
#pragma once

#include <cmath>
#include <cstdint>

#include "../math/box.h"

namespace fastrcnn {

// Array: FloatArray on the CPU, DeviceFloatArray on CUDA.
template <typename Array>
struct ProposalLevel {
  int64_t num_anchors, height, width;  // A per cell, h, w
  Array objectness, deltas;
  int64_t objectness_strides[4], delta_strides[4];  // N, channel, y, x
  const Box<float>* anchors;                        // contiguous

  HOST_DEVICE int64_t size() const { return num_anchors * height * width; }

  // Where the logit of an anchor lies, and the first of its deltas. Anchors are in the order y, x, anchor.
  HOST_DEVICE int64_t logit_place(int64_t image, int64_t index) const {
    return place(objectness_strides, 1, image, index);
  }
  HOST_DEVICE int64_t delta_place(int64_t image, int64_t index) const { return place(delta_strides, 4, image, index); }

 private:
  HOST_DEVICE int64_t place(const int64_t* strides, int64_t channels, int64_t image, int64_t index) const {
    // Divisions of 32 bits: several times as fast, and a level has fewer than 2^31 anchors.
    const auto i = static_cast<uint32_t>(index), per_cell = static_cast<uint32_t>(num_anchors);
    const uint32_t cell = i / per_cell, columns = static_cast<uint32_t>(width);
    const int64_t anchor = i % per_cell, y = cell / columns, x = cell % columns;
    return image * strides[0] + channels * anchor * strides[1] + y * strides[2] + x * strides[3];
  }
};

// The box that an anchor's deltas lead to, inside the image. The RPN's deltas are not normalised.
HOST_DEVICE Box<float> proposal_box(const Box<float>& anchor, const Box<float>& deltas, float image_height,
                                    float image_width) {
  const DeltaScale<float> plain{{0, 0, 0, 0}, {1, 1, 1, 1}};
  return clip(decode(anchor, deltas, plain), image_height, image_width);
}

// False if a coordinate is NaN.
HOST_DEVICE bool is_large_enough(const Box<float>& box, float min_size) {
  return box.x2 - box.x1 > min_size && box.y2 - box.y1 > min_size;
}

HOST_DEVICE float sigmoid(float logit) { return 1.0f / (1.0f + std::exp(-logit)); }

}  // namespace fastrcnn
