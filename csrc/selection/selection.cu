// select_detections as a CUDA operator: checks, allocation, launch. Does not wait for the device, so an image index
// that does not exist, or a scale factor that is not positive, is not an error here: such a RoI is never detected.
#include "selection.h"

#include "../common/current_stream.h"
#include "../common/device_float_array.h"
#include "selection.cuh"

namespace fastrcnn {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> select_detections_cuda(Tensor logits, Tensor deltas, Tensor rois,
                                                                  Tensor image_sizes, Tensor scale_factors,
                                                                  double score_threshold, double iou_threshold,
                                                                  int64_t max_output, std::vector<double> means,
                                                                  std::vector<double> stds) {
  check_selection(logits, deltas, rois, image_sizes, scale_factors, score_threshold, iou_threshold, max_output);
  logits = torch::stable::contiguous(logits);
  deltas = torch::stable::contiguous(deltas);
  rois = torch::stable::contiguous(rois);
  image_sizes = torch::stable::contiguous(image_sizes);
  scale_factors = torch::stable::contiguous(scale_factors);
  const int64_t capacity = std::min(logits.size(0) * (logits.size(1) - 1), max_output);
  const SelectionParams p = select_params(logits, deltas, rois, image_sizes, scale_factors, score_threshold,
                                          iou_threshold, capacity, means, stds, &device_float_array);
  const int64_t per_roi = most_above(p.score_threshold, p.num_classes);
  FASTRCNN_CHECK(p.num_rois <= INT32_MAX / per_roi, "rois: expected fewer than 2^31 candidates on CUDA, up to ",
                 per_roi, " of each RoI, got ", p.num_rois, " RoIs");
  Tensor boxes = new_tensor(rois, {p.num_images, capacity, 4}, ScalarType::Float);
  Tensor scores = new_tensor(rois, {p.num_images, capacity}, ScalarType::Float);
  Tensor labels = new_tensor(rois, {p.num_images, capacity}, ScalarType::Long);
  Tensor count = new_tensor(rois, {p.num_images}, ScalarType::Long);
  if (p.num_images == 0 || capacity == 0) {
    torch::stable::zero_(count);
    return {boxes, scores, labels, count};
  }
  const CurrentStream stream(rois);
  const auto bytes = static_cast<int64_t>(SelectionScratch(p, nullptr).bytes);
  Tensor scratch = new_tensor(rois, {bytes}, ScalarType::Byte);
  launch_selection(p, scratch.mutable_data_ptr(),
                   {reinterpret_cast<Box<float>*>(boxes.mutable_data_ptr<float>()), scores.mutable_data_ptr<float>(),
                    labels.mutable_data_ptr<int64_t>(), count.mutable_data_ptr<int64_t>()},
                   stream);
  return {boxes, scores, labels, count};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CUDA, m) { m.impl("select_detections", TORCH_BOX(&select_detections_cuda)); }

}  // namespace fastrcnn
