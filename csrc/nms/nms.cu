// NMS as a CUDA operator: checks, allocation, launch.
#include "nms.h"

#include "../common/current_stream.h"
#include "nms.cuh"

namespace fastrcnn {
namespace {

template <typename T>
void nms_typed(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& class_ids,
               const std::optional<Tensor>& valid, double iou_threshold, Tensor& indices, Tensor& count) {
  const auto p = nms_params<T>(boxes, scores, class_ids, valid, iou_threshold, indices.size(1));
  const CurrentStream stream(boxes);
  const auto bytes = static_cast<int64_t>(NmsScratch<T>(p, nullptr).bytes);
  Tensor scratch = new_tensor(boxes, {bytes}, ScalarType::Byte);
  launch_nms(p, scratch.mutable_data_ptr(), indices.mutable_data_ptr<int64_t>(), count.mutable_data_ptr<int64_t>(),
             stream);
}

std::tuple<Tensor, Tensor> nms_cuda(Tensor boxes, Tensor scores, std::optional<Tensor> class_ids,
                                    std::optional<Tensor> valid, double iou_threshold, int64_t max_output) {
  check_nms(boxes, scores, class_ids, valid, iou_threshold, max_output);
  const int64_t images = boxes.size(0), candidates = boxes.size(1), capacity = std::min(candidates, max_output);
  FASTRCNN_CHECK(candidates == 0 || images <= INT32_MAX / candidates,
                 "boxes: expected fewer than 2^31 in all images together on CUDA, got ", shape_text(boxes));
  Tensor indices = new_tensor(boxes, {images, capacity}, ScalarType::Long);
  Tensor count = new_tensor(boxes, {images}, ScalarType::Long);
  if (images == 0 || capacity == 0) {
    torch::stable::zero_(count);
    return {indices, count};
  }
  boxes = torch::stable::contiguous(boxes);
  scores = torch::stable::contiguous(scores);
  class_ids = contiguous(class_ids);
  valid = contiguous(valid);
  if (boxes.scalar_type() == ScalarType::Double) {
    nms_typed<double>(boxes, scores, class_ids, valid, iou_threshold, indices, count);
  } else {
    nms_typed<float>(boxes, scores, class_ids, valid, iou_threshold, indices, count);
  }
  return {indices, count};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CUDA, m) { m.impl("nms", TORCH_BOX(&nms_cuda)); }

}  // namespace fastrcnn
