// The hot loop of the selection of detections on the CPU (selection_simd.inl): the softmax of one RoI.
#pragma once

#include <cstdint>

#include "../math/box.h"
#include "../simd/level.h"

namespace fastrcnn {

constexpr int64_t kSoftmaxLanes = 16;

// row: the logits of `classes` classes and of the background, padded to whole lanes with -inf; becomes their softmax,
// where true is returned. False: no class but the background has a score above the threshold whose logarithm is given.
FASTRCNN_DECLARE_SIMD(bool softmax_above(float* row, int64_t classes, float log_threshold);)

}  // namespace fastrcnn
