// Greedy non-maximum suppression of N images at once, per class, with outputs of fixed size.
//
//   nms(boxes, scores, class_ids, valid, iou_threshold, max_output) -> (indices, count)
//
// boxes [N, M, 4] and scores [N, M], float32 or float64; class_ids int64 [N, M] or None (one class); valid bool [N, M]
// or None (all): candidates that take part. indices int64 [N, K], K = min(M, max_output): the kept candidates of each
// image, best score first, ties by lower index, NaN scores after all others; count int64 [N]. indices beyond count are
// 0.
//
// A candidate is kept unless a kept one of its class before it in that order suppresses it (math/box.h: suppresses).
#pragma once

#include "../common/tensor.h"
#include "nms_params.h"

namespace fastrcnn {

inline void check_nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& class_ids,
                      const std::optional<Tensor>& valid, double iou_threshold, int64_t max_output) {
  check_shape(boxes, "boxes", "[N, M, 4]", {-1, -1, 4});
  check_coordinates(boxes, "boxes");
  const int64_t n = boxes.size(0), m = boxes.size(1);
  check_shape(scores, "scores", "[N, M], one score per box", {n, m});
  check_dtype(scores, "scores", boxes.scalar_type());
  check_same_device(scores, "scores", boxes, "boxes");
  if (class_ids) {
    check_shape(*class_ids, "class_ids", "[N, M], one class per box", {n, m});
    check_dtype(*class_ids, "class_ids", ScalarType::Long);
    check_same_device(*class_ids, "class_ids", boxes, "boxes");
  }
  if (valid) {
    check_shape(*valid, "valid", "[N, M], one flag per box", {n, m});
    check_dtype(*valid, "valid", ScalarType::Bool);
    check_same_device(*valid, "valid", boxes, "boxes");
  }
  check_threshold(iou_threshold, "iou_threshold");
  FASTRCNN_CHECK(max_output >= 0, "max_output: expected 0 or more, got ", max_output);
  FASTRCNN_CHECK(m < (int64_t(1) << 29), "boxes: expected fewer than 2^29 per image, got ", m);
}

// All tensors contiguous; max_output: K.
template <typename T>
NmsParams<T> nms_params(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& class_ids,
                        const std::optional<Tensor>& valid, double iou_threshold, int64_t max_output) {
  NmsParams<T> p{};
  p.boxes = reinterpret_cast<const Box<T>*>(boxes.const_data_ptr<T>());
  p.scores = scores.const_data_ptr<T>();
  p.class_ids = class_ids ? class_ids->const_data_ptr<int64_t>() : nullptr;
  p.valid = valid ? valid->const_data_ptr<bool>() : nullptr;
  p.num_images = boxes.size(0);
  p.num_candidates = boxes.size(1);
  p.max_segment = p.num_candidates;
  p.class_bits = 15;
  p.max_output = max_output;
  p.threshold = round_down<T>(iou_threshold);
  return p;
}

}  // namespace fastrcnn
