// RPN outputs -> proposals: per level the anchors of largest objectness, decoded, clipped, filtered and thinned by NMS;
// then the best of all levels.
//
//   generate_proposals(objectness, deltas, anchors, image_sizes, pre_nms, post_nms, iou_threshold, min_size)
//     -> (boxes [N, P, 4], scores [N, P], count [N])
//
// objectness: L tensors [N, A, h, w]; deltas: L tensors [N, 4 * A, h, w]; both float32, float64, float16 or bfloat16 in
// any layout. anchors: L tensors float32 [h * w * A, 4], order y, x, anchor. image_sizes float32 [N, 2]: height, width.
// P = min(sum over levels of min(pre_nms, h * w * A), post_nms). boxes and scores float32, by descending logit, ties by
// level and then by anchor; count int64; rows beyond it are 0.
//
// A NaN logit is among the first that pre_nms lets through (as in torch.topk) and comes after all numbers in what
// follows (as in nms).
#pragma once

#include "../common/float_array.h"
#include "proposals_params.h"

namespace fastrcnn {

inline void check_proposals(const std::vector<Tensor>& objectness, const std::vector<Tensor>& deltas,
                            const std::vector<Tensor>& anchors, const Tensor& image_sizes, int64_t pre_nms,
                            int64_t post_nms, double iou_threshold, double min_size) {
  FASTRCNN_CHECK(!objectness.empty() && objectness.size() == deltas.size() && objectness.size() == anchors.size(),
                 "objectness, deltas and anchors: expected one of each per level, got ", objectness.size(), ", ",
                 deltas.size(), " and ", anchors.size());
  check_shape(objectness[0], "objectness[0]", "[N, A, h, w]", {-1, -1, -1, -1});
  const int64_t images = objectness[0].size(0);
  for (size_t l = 0; l < objectness.size(); ++l) {
    const Tensor& logits = objectness[l];
    const std::string place = text("[", l, "]");
    const std::string of_logits = "objectness" + place, of_deltas = "deltas" + place, of_anchors = "anchors" + place;
    check_shape(logits, of_logits.c_str(), "[N, A, h, w], the same N in every level", {images, -1, -1, -1});
    check_floating(logits, of_logits.c_str());
    const int64_t per_cell = logits.size(1), height = logits.size(2), width = logits.size(3);
    FASTRCNN_CHECK(per_cell * height * width < (int64_t(1) << 31), of_logits,
                   ": expected fewer than 2^31 anchors per level, got ", shape_text(logits));
    check_shape(deltas[l], of_deltas.c_str(), "[N, 4 * A, h, w]", {images, 4 * per_cell, height, width});
    check_floating(deltas[l], of_deltas.c_str());
    check_shape(anchors[l], of_anchors.c_str(), "[h * w * A, 4]", {height * width * per_cell, 4});
    check_dtype(anchors[l], of_anchors.c_str(), ScalarType::Float);
    check_same_device(logits, of_logits.c_str(), image_sizes, "image_sizes");
    check_same_device(deltas[l], of_deltas.c_str(), logits, of_logits.c_str());
    check_same_device(anchors[l], of_anchors.c_str(), logits, of_logits.c_str());
  }
  check_shape(image_sizes, "image_sizes", "[N, 2] (height, width)", {images, 2});
  check_dtype(image_sizes, "image_sizes", ScalarType::Float);
  FASTRCNN_CHECK(pre_nms >= 0, "pre_nms: expected 0 or more, got ", pre_nms);
  FASTRCNN_CHECK(post_nms >= 0, "post_nms: expected 0 or more, got ", post_nms);
  check_threshold(iou_threshold, "iou_threshold");
  check_number(min_size, "min_size");
}

// `anchors` contiguous. to_array: makes an Array of a tensor.
template <typename Array>
ProposalLevel<Array> proposal_level(const Tensor& objectness, const Tensor& deltas, const Tensor& anchors,
                                    Array (*to_array)(const Tensor&)) {
  ProposalLevel<Array> level{};
  level.num_anchors = objectness.size(1), level.height = objectness.size(2), level.width = objectness.size(3);
  level.objectness = to_array(objectness);
  level.deltas = to_array(deltas);
  for (int d = 0; d < 4; ++d) {
    level.objectness_strides[d] = objectness.stride(d);
    level.delta_strides[d] = deltas.stride(d);
  }
  level.anchors = reinterpret_cast<const Box<float>*>(anchors.const_data_ptr<float>());
  return level;
}

}  // namespace fastrcnn
