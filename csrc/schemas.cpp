// Every operator of the native library. What the arguments are is said in <op>/<op>.h and, for users, in the Python
// function of the same name; a leading underscore marks what only this package calls.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastrcnn, m) {
  m.def(
      "multilevel_roi_align(Tensor[] features, Tensor rois, float[] spatial_scales, SymInt pooled_height, "
      "SymInt pooled_width, int sampling_ratio, bool aligned, float finest_scale) -> Tensor");
  m.def(
      "_multilevel_roi_align_backward(Tensor grad, Tensor rois, SymInt[] level_heights, SymInt[] level_widths, "
      "SymInt num_images, float[] spatial_scales, int sampling_ratio, bool aligned, float finest_scale, "
      "bool channels_last, bool deterministic) -> Tensor[]");
  m.def(
      "roi_pool(Tensor features, Tensor rois, SymInt pooled_height, SymInt pooled_width, float spatial_scale) "
      "-> (Tensor pooled, Tensor argmax)");
  m.def(
      "_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, SymInt num_images, SymInt height, SymInt width, "
      "float spatial_scale, bool channels_last, bool deterministic) -> Tensor");
  m.def(
      "nms(Tensor boxes, Tensor scores, Tensor? class_ids, Tensor? valid, float iou_threshold, SymInt max_output) "
      "-> (Tensor indices, Tensor count)");
  m.def("base_anchors(float size, float[] scales, float[] ratios) -> Tensor");
  m.def("grid_anchors(Tensor base_anchors, SymInt height, SymInt width, float stride) -> Tensor");
  m.def("encode_boxes(Tensor boxes, Tensor targets, float[] means, float[] stds) -> Tensor");
  m.def("decode_boxes(Tensor boxes, Tensor deltas, float[] means, float[] stds, Tensor? max_shape) -> Tensor");
  m.def(
      "_decode_boxes_backward(Tensor grad, Tensor boxes, Tensor deltas, float[] means, float[] stds, "
      "Tensor? max_shape) -> Tensor");
  m.def("box_iou(Tensor a, Tensor b) -> Tensor");
  m.def(
      "assign_max_iou(Tensor boxes, Tensor gt_boxes, float pos_iou, float neg_iou, float min_pos_iou, "
      "bool match_low_quality) -> (Tensor gt_index, Tensor max_iou)");
  m.def(
      "iou_loss(Tensor pred, Tensor target, str kind, str mode, float eps, float beta) "
      "-> (Tensor loss, Tensor derivative)");
  m.def(
      "_iou_loss(Tensor pred, Tensor target, str kind, str mode, float eps, float beta) "
      "-> (Tensor loss, Tensor derivative)");
  m.def("_iou_loss_backward(Tensor grad, Tensor derivative) -> Tensor");
  m.def(
      "generate_proposals(Tensor[] objectness, Tensor[] deltas, Tensor[] anchors, Tensor image_sizes, SymInt pre_nms, "
      "SymInt post_nms, float iou_threshold, float min_size) -> (Tensor boxes, Tensor scores, Tensor count)");
  m.def(
      "select_detections(Tensor logits, Tensor deltas, Tensor rois, Tensor image_sizes, Tensor scale_factors, "
      "float score_threshold, float iou_threshold, SymInt max_output, float[] means, float[] stds) "
      "-> (Tensor boxes, Tensor scores, Tensor labels, Tensor count)");
  m.def("conv3x3(Tensor x, Tensor weight, Tensor? bias, bool relu) -> Tensor");
}
