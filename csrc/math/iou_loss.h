// Losses on the overlap of a predicted and a target box, each with its gradient with respect to the prediction.
//
// Definitions as in mmdetection 2.28, whose models were trained with them. The formulas are those of the papers; what
// differs between implementations is where a small epsilon keeps a quotient finite.
//   iou          Yu et al. 2016 (UnitBox): -ln IoU; also 1 - IoU and 1 - IoU^2
//   giou         Rezatofighi et al. 2019
//   diou, ciou   Zheng et al. 2020; the weight alpha of ciou counts as a constant
//   bounded_iou  Tychsen-Smith and Petersson 2018: four smooth-L1 terms, for centre x, centre y, width, height
//
// A loss depends on the corners only through a few lengths along each axis (AxisMeeting). So each is written as its
// formula and its derivatives with respect to these lengths; one chain rule (corner_gradient) leads on to the corners.
// There are no branches, only choices between numbers, so that a loop over boxes becomes vector code.
//
// A bound of the form max(x, constant) that guards a quotient has no slope below the constant and passes the gradient
// on it; where two coordinates are equal, each has half of the slope of their maximum or minimum. NaN stays NaN.
#pragma once

#include "box.h"
#include "elementary.h"

namespace fastrcnn {

enum class IouLossKind { iou_log, iou_linear, iou_square, giou, diou, ciou, bounded_iou };

// max(x, bound); unlike maximum(x, bound), NaN stays NaN.
template <typename T>
HOST_DEVICE T at_least(T x, T bound) {
  return x < bound ? bound : x;
}

// The slope of at_least(x, bound), times `slope`.
template <typename T>
HOST_DEVICE T slope_at_least(T x, T bound, T slope) {
  return x < bound ? T(0) : slope;
}

// The slope of max(a, b) with respect to a.
template <typename T>
HOST_DEVICE T share_of_maximum(T a, T b) {
  return (a > b ? T(0.5) : T(0)) + (a >= b ? T(0.5) : T(0));
}

// The prediction [low, high] and its target along one axis.
template <typename T>
struct AxisMeeting {
  T size, target_size;
  T overlap;    // length of the intersection, 0 if there is none
  T enclosing;  // length of the smallest interval around both
  T offset;     // from the target's centre to the prediction's, times 2
  // derivatives of overlap and enclosing with respect to low and high
  T overlap_by_low, overlap_by_high, enclosing_by_low, enclosing_by_high;
};

template <typename T>
HOST_DEVICE AxisMeeting<T> meet(T low, T high, T target_low, T target_high) {
  const T zero = T(0), one = T(1);
  const T overlap = minimum(high, target_high) - maximum(low, target_low);
  const T enclosing = maximum(high, target_high) - minimum(low, target_low);
  const T low_share = share_of_maximum(low, target_low);     // of max(low, target_low)
  const T high_share = share_of_maximum(target_high, high);  // of min(high, target_high)
  AxisMeeting<T> axis;
  axis.size = high - low;
  axis.target_size = target_high - target_low;
  axis.overlap = at_least(overlap, zero);
  axis.enclosing = at_least(enclosing, zero);
  axis.offset = (low + high) - (target_low + target_high);
  axis.overlap_by_low = slope_at_least(overlap, zero, -low_share);
  axis.overlap_by_high = slope_at_least(overlap, zero, high_share);
  axis.enclosing_by_low = slope_at_least(enclosing, zero, low_share - one);
  axis.enclosing_by_high = slope_at_least(enclosing, zero, one - high_share);
  return axis;
}

// The derivatives of a loss with respect to the lengths along one axis.
template <typename T>
struct AxisSlopes {
  T by_overlap, by_enclosing, by_size, by_offset;
};

template <typename T>
struct LossAndGradient {
  T loss;
  Box<T> gradient;  // with respect to the corners of the prediction
};

template <typename T>
HOST_DEVICE Box<T> corner_gradient(const AxisMeeting<T>& x, const AxisSlopes<T>& dx, const AxisMeeting<T>& y,
                                   const AxisSlopes<T>& dy) {
  return {dx.by_overlap * x.overlap_by_low + dx.by_enclosing * x.enclosing_by_low - dx.by_size + dx.by_offset,
          dy.by_overlap * y.overlap_by_low + dy.by_enclosing * y.enclosing_by_low - dy.by_size + dy.by_offset,
          dx.by_overlap * x.overlap_by_high + dx.by_enclosing * x.enclosing_by_high + dx.by_size + dx.by_offset,
          dy.by_overlap * y.overlap_by_high + dy.by_enclosing * y.enclosing_by_high + dy.by_size + dy.by_offset};
}

// The areas of intersection and union.
template <typename T>
struct Areas {
  T inter, joint;
};

template <typename T>
HOST_DEVICE Areas<T> areas(const AxisMeeting<T>& x, const AxisMeeting<T>& y) {
  const T inter = x.overlap * y.overlap;
  return {inter, x.size * y.size + x.target_size * y.target_size - inter};
}

// The slopes of a loss that depends on the areas of intersection and union, and on the enclosing lengths. The union is
// the sum of both boxes' areas minus the intersection.
template <typename T>
HOST_DEVICE AxisSlopes<T> area_slopes(const AxisMeeting<T>& other_axis, T by_inter, T by_joint, T by_enclosing) {
  return {(by_inter - by_joint) * other_axis.overlap, by_enclosing, by_joint * other_axis.size, T(0)};
}

// -ln IoU, 1 - IoU or 1 - IoU^2 with IoU = inter / max(union, 1e-6), at least eps.
template <IouLossKind kind, typename T>
HOST_DEVICE LossAndGradient<T> iou_loss(const AxisMeeting<T>& x, const AxisMeeting<T>& y, T eps) {
  const Areas<T> a = areas(x, y);
  const T divisor = at_least(a.joint, T(1e-6)), inverse = T(1) / divisor;
  const T quotient = a.inter / divisor, iou = at_least(quotient, eps);
  T loss, slope;
  if constexpr (kind == IouLossKind::iou_log) {
    loss = -logarithm(iou);
    slope = T(-1) / iou;
  } else if constexpr (kind == IouLossKind::iou_linear) {
    loss = T(1) - iou;
    slope = T(-1);
  } else {
    loss = T(1) - iou * iou;
    slope = T(-2) * iou;
  }
  const T by_iou = slope_at_least(quotient, eps, slope), by_inter = by_iou * inverse;
  const T by_joint = slope_at_least(a.joint, T(1e-6), -quotient * by_inter);
  return {loss,
          corner_gradient(x, area_slopes(y, by_inter, by_joint, T(0)), y, area_slopes(x, by_inter, by_joint, T(0)))};
}

// 1 - (IoU - (C - union) / C), where C is the area of the enclosing box; union and C at least eps.
template <typename T>
HOST_DEVICE LossAndGradient<T> giou_loss(const AxisMeeting<T>& x, const AxisMeeting<T>& y, T eps) {
  const Areas<T> a = areas(x, y);
  const T around = x.enclosing * y.enclosing;
  const T joint = at_least(a.joint, eps), inverse_joint = T(1) / joint;
  const T enclosing = at_least(around, eps), inverse_enclosing = T(1) / enclosing;
  const T iou = a.inter / joint;
  const T loss = T(1) - (iou - (enclosing - joint) / enclosing);
  const T by_inter = -inverse_joint;
  const T by_joint = slope_at_least(a.joint, eps, iou * inverse_joint - inverse_enclosing);
  const T by_area = slope_at_least(around, eps, joint * inverse_enclosing * inverse_enclosing);
  return {loss, corner_gradient(x, area_slopes(y, by_inter, by_joint, by_area * y.enclosing), y,
                                area_slopes(x, by_inter, by_joint, by_area * x.enclosing))};
}

// diou: 1 - (IoU - d), where d is the squared distance of the centres in units of the squared diagonal of the enclosing
// box. ciou: 1 - (IoU - d - alpha v), where v compares the aspect ratios. Union, diagonal and heights are increased by
// eps.
template <IouLossKind kind, typename T>
HOST_DEVICE LossAndGradient<T> distance_loss(const AxisMeeting<T>& x, const AxisMeeting<T>& y, T eps) {
  const T one = T(1), quarter = T(0.25), half = T(0.5), two = T(2);
  const Areas<T> a = areas(x, y);
  const T joint = a.joint + eps, iou = a.inter / joint;
  const T diagonal = x.enclosing * x.enclosing + y.enclosing * y.enclosing + eps;
  const T distance = (x.offset * x.offset * quarter + y.offset * y.offset * quarter) / diagonal;
  T loss = one - (iou - distance);
  const T by_inter = T(-1) / joint, by_joint = iou / joint, by_diagonal = -distance / diagonal;
  AxisSlopes<T> dx = area_slopes(y, by_inter, by_joint, by_diagonal * two * x.enclosing);
  AxisSlopes<T> dy = area_slopes(x, by_inter, by_joint, by_diagonal * two * y.enclosing);
  dx.by_offset = half * x.offset / diagonal;
  dy.by_offset = half * y.offset / diagonal;
  if constexpr (kind == IouLossKind::diou) return {loss, corner_gradient(x, dx, y, dy)};

  const T scale = T(0.40528473456935109);  // 4 / pi^2
  const T width = x.size, height = y.size + eps;
  const T angle = arctangent(x.target_size / (y.target_size + eps)) - arctangent(width / height);
  const T shape = scale * angle * angle;  // v
  // Equal boxes may give 0 / 0 in alpha: then v = 0, and alpha does not matter.
  const T rest = one - iou + shape, ratio = shape / rest;
  const T alpha = iou > half && rest > T(0) ? ratio : T(0);
  // of arctan(width / height): height / (width^2 + height^2) by width, -width / (width^2 + height^2) by height
  const T by_angle = alpha * scale * two * angle / (width * width + height * height);
  dx.by_size -= by_angle * height;
  dy.by_size += by_angle * width;
  const T similarity = iou - (distance + alpha * shape);
  loss = one - clamp(similarity, T(-1), one);
  const Box<T> g = corner_gradient(x, dx, y, dy);
  const bool clamped = similarity < T(-1) || similarity > one;
  return {loss, {clamped ? T(0) : g.x1, clamped ? T(0) : g.y1, clamped ? T(0) : g.x2, clamped ? T(0) : g.y2}};
}

// All losses but bounded_iou: one number per box.
template <IouLossKind kind, typename T>
HOST_DEVICE LossAndGradient<T> overlap_loss(const Box<T>& pred, const Box<T>& target, T eps) {
  const AxisMeeting<T> x = meet(pred.x1, pred.x2, target.x1, target.x2);
  const AxisMeeting<T> y = meet(pred.y1, pred.y2, target.y1, target.y2);
  if constexpr (kind == IouLossKind::giou) {
    return giou_loss(x, y, eps);
  } else if constexpr (kind == IouLossKind::diou || kind == IouLossKind::ciou) {
    return distance_loss<kind>(x, y, eps);
  } else {
    return iou_loss<kind>(x, y, eps);
  }
}

// A loss and its derivative with respect to one number.
template <typename T>
struct Term {
  T loss, slope;
};

// Smooth L1 of a term >= 0.
template <typename T>
HOST_DEVICE Term<T> smooth_l1(const Term<T>& term, T beta) {
  const T inside = T(0.5) * term.loss * term.loss / beta, outside = term.loss - T(0.5) * beta;
  const T slope = term.loss / beta * term.slope;
  return {term.loss < beta ? inside : outside, term.loss < beta ? slope : term.slope};
}

// The IoU that is lost at least by a centre that is off, by the prediction's centre.
template <typename T>
HOST_DEVICE Term<T> centre_term(T centre, T target_centre, T target_size, T eps) {
  const T zero = T(0), difference = centre - target_centre;
  const T twice = T(2) * (difference < zero ? -difference : difference);
  const T divisor = target_size + twice + eps, bound = (target_size - twice) / divisor;
  const T sign = difference > zero ? T(1) : (difference < zero ? T(-1) : zero);
  const T by_distance = share_of_maximum(bound, zero) * T(2) * (T(1) + bound) / divisor;
  return {T(1) - at_least(bound, zero), sign * by_distance};
}

// The IoU that is lost at least by a size that differs, by the prediction's size.
template <typename T>
HOST_DEVICE Term<T> size_term(T size, T target_size, T eps) {
  const T larger = target_size / (size + eps), smaller = size / (target_size + eps);
  const T share = share_of_maximum(smaller, larger);  // of min(larger, smaller)
  const T slope = share * larger / (size + eps) - (T(1) - share) / (target_size + eps);
  return {T(1) - minimum(larger, smaller), slope};
}

// The four terms of bounded_iou, and the derivative of each with respect to the one number it depends on: centre x,
// centre y, width, height of the prediction.
template <typename T>
struct BoundedLoss {
  T loss[4], slope[4];
};

template <typename T>
HOST_DEVICE BoundedLoss<T> bounded_loss(const Box<T>& p, const Box<T>& t, T eps, T beta) {
  const T half = T(0.5), width = t.x2 - t.x1, height = t.y2 - t.y1;
  const Term<T> x = smooth_l1(centre_term((p.x1 + p.x2) * half, (t.x1 + t.x2) * half, width, eps), beta);
  const Term<T> y = smooth_l1(centre_term((p.y1 + p.y2) * half, (t.y1 + t.y2) * half, height, eps), beta);
  const Term<T> w = smooth_l1(size_term(p.x2 - p.x1, width, eps), beta);
  const Term<T> h = smooth_l1(size_term(p.y2 - p.y1, height, eps), beta);
  return {{x.loss, y.loss, w.loss, h.loss}, {x.slope, y.slope, w.slope, h.slope}};
}

// The gradient with respect to the corners, given that with respect to centre x, centre y, width and height.
template <typename T>
HOST_DEVICE Box<T> corners_from_centre_and_size(T x, T y, T width, T height) {
  const T half = T(0.5);
  return {x * half - width, y * half - height, x * half + width, y * half + height};
}

}  // namespace fastrcnn
