// Box head outputs -> detections: softmax, threshold, decoding, NMS within each class, the best of all classes.
//
//   select_detections(logits, deltas, rois, image_sizes, scale_factors, score_threshold, iou_threshold, max_output,
//                     means, stds) -> (boxes [N, K, 4], scores [N, K], labels [N, K], count [N])
//
// logits [R, C + 1], background last; deltas [R, 4 * C], class-major; both float32, float64, float16 or bfloat16. rois
// float32 [R, 5]: image index (-1: padding, never detected), x1, y1, x2, y2. image_sizes float32 [N, 2]: height, width;
// scale_factors float32 [N, 2]: of width, of height. K = min(R * C, max_output). boxes and scores float32, labels
// int64, by descending score, ties by RoI and then by class; count int64; rows beyond it are 0.
//
// The softmax is computed in float32; a RoI with a NaN or +inf logit has NaN scores, which exceed no threshold.
#pragma once

#include "../box_coding/box_coding.h"
#include "../common/float_array.h"
#include "selection_params.h"

namespace fastrcnn {

inline void check_selection(const Tensor& logits, const Tensor& deltas, const Tensor& rois, const Tensor& image_sizes,
                            const Tensor& scale_factors, double score_threshold, double iou_threshold,
                            int64_t max_output) {
  check_floating(logits, "logits");
  FASTRCNN_CHECK(logits.dim() == 2 && logits.size(1) >= 2,
                 "logits: expected shape [R, C + 1] with C of 1 or more, got ", shape_text(logits));
  const int64_t rows = logits.size(0), classes = logits.size(1) - 1;
  check_shape(deltas, "deltas", "[R, 4 * C]", {rows, 4 * classes});
  check_floating(deltas, "deltas");
  check_same_device(deltas, "deltas", logits, "logits");
  check_shape(rois, "rois", "[R, 5] (image index, x1, y1, x2, y2)", {rows, 5});
  check_dtype(rois, "rois", ScalarType::Float);
  check_same_device(rois, "rois", logits, "logits");
  check_shape(image_sizes, "image_sizes", "[N, 2] (height, width)", {-1, 2});
  check_dtype(image_sizes, "image_sizes", ScalarType::Float);
  check_same_device(image_sizes, "image_sizes", logits, "logits");
  check_shape(scale_factors, "scale_factors", "[N, 2] (width factor, height factor)", {image_sizes.size(0), 2});
  check_dtype(scale_factors, "scale_factors", ScalarType::Float);
  check_same_device(scale_factors, "scale_factors", logits, "logits");
  check_number(score_threshold, "score_threshold");
  check_threshold(iou_threshold, "iou_threshold");
  FASTRCNN_CHECK(max_output >= 0, "max_output: expected 0 or more, got ", max_output);
}

// All tensors contiguous; max_output: K. to_array: makes an Array of a tensor.
template <typename Array>
SelectParams<Array> select_params(const Tensor& logits, const Tensor& deltas, const Tensor& rois,
                                  const Tensor& image_sizes, const Tensor& scale_factors, double score_threshold,
                                  double iou_threshold, int64_t max_output, const std::vector<double>& means,
                                  const std::vector<double>& stds, Array (*to_array)(const Tensor&)) {
  SelectParams<Array> p{};
  p.logits = to_array(logits);
  p.deltas = to_array(deltas);
  p.rois = rois.const_data_ptr<float>();
  p.image_sizes = image_sizes.const_data_ptr<float>();
  p.scale_factors = scale_factors.const_data_ptr<float>();
  p.num_rois = logits.size(0);
  p.num_classes = logits.size(1) - 1;
  p.num_images = image_sizes.size(0);
  p.max_output = max_output;
  p.score_threshold = static_cast<float>(score_threshold);
  p.iou_threshold = round_down<float>(iou_threshold);
  p.scale = delta_scale<float>(means, stds);
  return p;
}

}  // namespace fastrcnn
