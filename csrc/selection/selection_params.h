// What the kernels of the selection of detections work on: the arguments as plain numbers, and the box of a detection.
// Free of torch.
#pragma once

#include <cstdint>
#include <limits>

#include "../math/box.h"

namespace fastrcnn {

// Array: FloatArray on the CPU, DeviceFloatArray on CUDA.
template <typename Array>
struct SelectParams {
  Array logits;                // [R, C + 1]
  Array deltas;                // [R, 4 * C]
  const float* rois;           // [R, 5]
  const float* image_sizes;    // [N, 2]
  const float* scale_factors;  // [N, 2]
  int64_t num_rois;            // R
  int64_t num_classes;         // C
  int64_t num_images;          // N
  int64_t max_output;          // K
  float score_threshold;
  float iou_threshold;  // round_down of the user's double
  DeltaScale<float> scale;
};

// Boxes can be divided by both factors of the image.
template <typename Array>
HOST_DEVICE bool has_scale(const SelectParams<Array>& p, int64_t image) {
  const float *factor = p.scale_factors + 2 * image, most = std::numeric_limits<float>::max();
  return factor[0] > 0 && factor[0] <= most && factor[1] > 0 && factor[1] <= most;
}

// The box that the deltas lead to from a RoI of an image, clipped to it, in pixels of the original image.
template <typename Array>
HOST_DEVICE Box<float> detection_box(const SelectParams<Array>& p, int64_t roi, int64_t image,
                                     const Box<float>& deltas) {
  const float *numbers = p.rois + 5 * roi, *size = p.image_sizes + 2 * image, *factor = p.scale_factors + 2 * image;
  const Box<float> box = decode(Box<float>{numbers[1], numbers[2], numbers[3], numbers[4]}, deltas, p.scale);
  const Box<float> inside = clip(box, size[0], size[1]);
  return {inside.x1 / factor[0], inside.y1 / factor[1], inside.x2 / factor[0], inside.y2 / factor[1]};
}

}  // namespace fastrcnn
