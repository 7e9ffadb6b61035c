// Boxes: x1, y1, x2, y2 in continuous pixels (no "+1"). IoU, the suppression rule, and coding as deltas.
//
// CPU and CUDA must agree to the last bit on IoU, since it is compared with thresholds. So this file is compiled
// without contraction to fused multiply-adds (-ffp-contract=off, -fmad=false), and min, max and clamp are written as
// comparisons, whose result for NaN is defined by the order of their arguments.
#pragma once

#include <cmath>

#include "../common/host_device.h"
#include "elementary.h"

namespace fastrcnn {

template <typename T>
struct Box {
  T x1, y1, x2, y2;
};

template <typename T>
HOST_DEVICE T minimum(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
HOST_DEVICE T maximum(T a, T b) {
  return a > b ? a : b;
}

// NaN stays NaN.
template <typename T>
HOST_DEVICE T clamp(T value, T low, T high) {
  return minimum(high, maximum(low, value));
}

// Without a branch; false for NaN.
template <typename T>
HOST_DEVICE bool within(T value, T low, T high) {
  return (value >= low) & (value <= high);
}

template <typename T>
HOST_DEVICE T area(const Box<T>& box) {
  return (box.x2 - box.x1) * (box.y2 - box.y1);
}

template <typename T>
HOST_DEVICE T intersection(const Box<T>& a, const Box<T>& b) {
  const T width = minimum(a.x2, b.x2) - maximum(a.x1, b.x1);
  const T height = minimum(a.y2, b.y2) - maximum(a.y1, b.y1);
  return maximum(width, T(0)) * maximum(height, T(0));
}

// IoU of assignment and box_iou: inter / max(union, 1e-6), so 0 for two boxes without area; 0 where a box has NaN.
template <typename T>
HOST_DEVICE T iou(const Box<T>& a, T area_a, const Box<T>& b, T area_b) {
  const T inter = intersection(a, b);
  const T quotient = inter / maximum(T(1e-6), area_a + area_b - inter);  // a union that is NaN stays NaN
  return maximum(quotient, T(0));                                        // and ends here
}

// The suppression rule of NMS: inter / union, rounded to T, is greater than the threshold. `threshold` is the largest T
// that does not exceed the user's double, for which the comparison in T equals the comparison in double (round_down).
// Two boxes without area give 0 / 0 = NaN, which is not greater; NaN boxes neither suppress nor are suppressed.
template <typename T>
HOST_DEVICE bool overlap_exceeds(T inter, T area_a, T area_b, T threshold) {
  return inter / (area_a + area_b - inter) > threshold;
}

template <typename T>
HOST_DEVICE bool suppresses(const Box<T>& a, T area_a, const Box<T>& b, T area_b, T threshold) {
  const T inter = intersection(a, b);
  return inter > T(0) && overlap_exceeds(inter, area_a, area_b, threshold);  // most boxes are apart: no division
}

// The largest value of T that is <= x.
template <typename T>
inline T round_down(double x) {
  const T nearest = static_cast<T>(x);
  return static_cast<double>(nearest) > x ? std::nextafter(nearest, -static_cast<T>(INFINITY)) : nearest;
}

// Normalisation of deltas: coded = (raw - mean) / std.
template <typename T>
struct DeltaScale {
  T mean[4];
  T std[4];
};

// Deltas (dx, dy, dw, dh) that take `box` to `target` (Girshick et al. 2014, R-CNN, appendix C).
// A box without width or height gives infinities or NaN.
template <typename T>
HOST_DEVICE Box<T> encode(const Box<T>& box, const Box<T>& target, const DeltaScale<T>& scale) {
  const T half = T(0.5);
  const T width = box.x2 - box.x1, height = box.y2 - box.y1;
  const T dx = ((target.x1 + target.x2) * half - (box.x1 + box.x2) * half) / width;
  const T dy = ((target.y1 + target.y2) * half - (box.y1 + box.y2) * half) / height;
  const T dw = logarithm((target.x2 - target.x1) / width);
  const T dh = logarithm((target.y2 - target.y1) / height);
  return {(dx - scale.mean[0]) / scale.std[0], (dy - scale.mean[1]) / scale.std[1], (dw - scale.mean[2]) / scale.std[2],
          (dh - scale.mean[3]) / scale.std[3]};
}

// |dw| and |dh| are clamped to |ln(16 / 1000)|, so that exp cannot overflow.
template <typename T>
HOST_DEVICE constexpr T max_log_ratio() {
  return T(4.135166556742356);
}

// The inverse of encode. `deltas` holds dx, dy, dw, dh in its four fields.
template <typename T>
HOST_DEVICE Box<T> decode(const Box<T>& box, const Box<T>& deltas, const DeltaScale<T>& scale) {
  const T half = T(0.5), limit = max_log_ratio<T>();
  const T dx = deltas.x1 * scale.std[0] + scale.mean[0];
  const T dy = deltas.y1 * scale.std[1] + scale.mean[1];
  const T dw = clamp(deltas.x2 * scale.std[2] + scale.mean[2], -limit, limit);
  const T dh = clamp(deltas.y2 * scale.std[3] + scale.mean[3], -limit, limit);
  const T width = box.x2 - box.x1, height = box.y2 - box.y1;
  const T x = (box.x1 + box.x2) * half + width * dx;
  const T y = (box.y1 + box.y2) * half + height * dy;
  const T half_width = width * exponential(dw) * half, half_height = height * exponential(dh) * half;
  return {x - half_width, y - half_height, x + half_width, y + half_height};
}

// Clips to an image of the given size: 0 <= x <= width, 0 <= y <= height. NaN stays NaN.
template <typename T>
HOST_DEVICE Box<T> clip(const Box<T>& box, T height, T width) {
  const T zero = T(0);
  return {clamp(box.x1, zero, width), clamp(box.y1, zero, height), clamp(box.x2, zero, width),
          clamp(box.y2, zero, height)};
}

// The gradient of decode (then clip, if the image size is given: height >= 0) with respect to the four deltas, given
// the gradient with respect to the four corners. A value exactly on the boundary of a clamp passes its gradient.
template <typename T>
HOST_DEVICE Box<T> decode_backward(const Box<T>& box, const Box<T>& deltas, const DeltaScale<T>& scale, bool clipped,
                                   T image_height, T image_width, Box<T> grad) {
  const T zero = T(0), half = T(0.5), limit = max_log_ratio<T>();
  if (clipped) {
    const Box<T> raw = decode(box, deltas, scale);
    grad.x1 = within(raw.x1, zero, image_width) ? grad.x1 : zero;
    grad.y1 = within(raw.y1, zero, image_height) ? grad.y1 : zero;
    grad.x2 = within(raw.x2, zero, image_width) ? grad.x2 : zero;
    grad.y2 = within(raw.y2, zero, image_height) ? grad.y2 : zero;
  }
  const T width = box.x2 - box.x1, height = box.y2 - box.y1;
  const T dw = deltas.x2 * scale.std[2] + scale.mean[2], dh = deltas.y2 * scale.std[3] + scale.mean[3];
  const T grad_dw = (grad.x2 - grad.x1) * half * width * exponential(clamp(dw, -limit, limit)) * scale.std[2];
  const T grad_dh = (grad.y2 - grad.y1) * half * height * exponential(clamp(dh, -limit, limit)) * scale.std[3];
  return {(grad.x1 + grad.x2) * width * scale.std[0], (grad.y1 + grad.y2) * height * scale.std[1],
          within(dw, -limit, limit) ? grad_dw : zero, within(dh, -limit, limit) ? grad_dh : zero};
}

}  // namespace fastrcnn
