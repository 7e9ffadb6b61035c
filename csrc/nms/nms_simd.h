// The hot loop of NMS on the CPU (nms_simd.inl): one kept box against the boxes after it.
#pragma once

#include "../math/box.h"
#include "../simd/level.h"

namespace fastrcnn {

constexpr int64_t kNmsBlock = 64;

// Boxes in the order of NMS as separate arrays, padded to whole blocks with boxes that are not alive.
template <typename T>
struct NmsBoxes {
  const T *x1, *y1, *x2, *y2, *area;
  int32_t* alive;  // -1 or 0
  int64_t count;   // with padding: a multiple of kNmsBlock
};

// Sets alive = 0 for the boxes from the block of box i on that box i suppresses; those up to i itself are decided
// already, and what happens to their flags does not matter.
#define FASTRCNN_NMS_KERNELS(T) void suppress_after(const NmsBoxes<T>& boxes, int64_t i, T threshold);

FASTRCNN_DECLARE_SIMD(FASTRCNN_NMS_KERNELS(float) FASTRCNN_NMS_KERNELS(double))

#undef FASTRCNN_NMS_KERNELS

}  // namespace fastrcnn
