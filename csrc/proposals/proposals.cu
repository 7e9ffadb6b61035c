// generate_proposals as a CUDA operator: checks, allocation, launch.
#include "proposals.h"

#include "../common/current_stream.h"
#include "../common/device_float_array.h"
#include "proposals.cuh"

namespace fastrcnn {
namespace {

std::tuple<Tensor, Tensor, Tensor> generate_proposals_cuda(std::vector<Tensor> objectness, std::vector<Tensor> deltas,
                                                           std::vector<Tensor> anchors, Tensor image_sizes,
                                                           int64_t pre_nms, int64_t post_nms, double iou_threshold,
                                                           double min_size) {
  check_proposals(objectness, deltas, anchors, image_sizes, pre_nms, post_nms, iou_threshold, min_size);
  FASTRCNN_CHECK(objectness.size() <= kMaxProposalLevels, "objectness: expected at most ", kMaxProposalLevels,
                 " levels on CUDA, got ", objectness.size());
  image_sizes = torch::stable::contiguous(image_sizes);
  ProposalParams p{};
  p.top_k.num_images = image_sizes.size(0);
  p.image_sizes = image_sizes.const_data_ptr<float>();
  for (size_t l = 0; l < objectness.size(); ++l) {
    anchors[l] = torch::stable::contiguous(anchors[l]);
    append_level(p.top_k, proposal_level(objectness[l], deltas[l], anchors[l], &device_float_array), pre_nms);
  }
  const int64_t images = image_sizes.size(0), candidates = p.top_k.num_chosen;
  FASTRCNN_CHECK(candidates == 0 || images <= INT32_MAX / candidates,
                 "pre_nms: expected fewer than 2^31 candidates in all images together on CUDA, got ", candidates,
                 " in each of ", images);
  p.max_output = std::min(candidates, post_nms);
  p.iou_threshold = round_down<float>(iou_threshold);
  p.min_size = static_cast<float>(min_size);
  Tensor boxes = new_tensor(image_sizes, {images, p.max_output, 4}, ScalarType::Float);
  Tensor scores = new_tensor(image_sizes, {images, p.max_output}, ScalarType::Float);
  Tensor count = new_tensor(image_sizes, {images}, ScalarType::Long);
  if (images == 0 || p.max_output == 0) {
    torch::stable::zero_(count);
    return {boxes, scores, count};
  }
  const CurrentStream stream(image_sizes);
  const auto bytes = static_cast<int64_t>(ProposalScratch(p, nullptr).bytes);
  Tensor scratch = new_tensor(image_sizes, {bytes}, ScalarType::Byte);
  launch_proposals(p, scratch.mutable_data_ptr(), reinterpret_cast<Box<float>*>(boxes.mutable_data_ptr<float>()),
                   scores.mutable_data_ptr<float>(), count.mutable_data_ptr<int64_t>(), stream);
  return {boxes, scores, count};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CUDA, m) { m.impl("generate_proposals", TORCH_BOX(&generate_proposals_cuda)); }

}  // namespace fastrcnn
