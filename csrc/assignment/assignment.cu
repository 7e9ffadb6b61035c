// assign_max_iou as a CUDA operator: checks, allocation, launch.
#include "assignment.h"

#include "../common/current_stream.h"
#include "assignment.cuh"

namespace fastrcnn {
namespace {

template <typename T>
void assign_typed(const Tensor& boxes, const Tensor& gt_boxes, double pos_iou, double neg_iou, double min_pos_iou,
                  bool match_low_quality, Tensor& gt_index, Tensor& max_iou) {
  const auto p = assign_params<T>(boxes, gt_boxes, pos_iou, neg_iou, min_pos_iou, match_low_quality);
  Tensor gt_max = new_tensor(boxes, {p.num_gt}, boxes.scalar_type());
  const CurrentStream stream(boxes);
  launch_assign(p, gt_index.mutable_data_ptr<int64_t>(), max_iou.mutable_data_ptr<T>(), gt_max.mutable_data_ptr<T>(),
                stream);
}

std::tuple<Tensor, Tensor> assign_max_iou_cuda(Tensor boxes, Tensor gt_boxes, double pos_iou, double neg_iou,
                                               double min_pos_iou, bool match_low_quality) {
  check_assign(boxes, gt_boxes, pos_iou, neg_iou, min_pos_iou);
  boxes = torch::stable::contiguous(boxes);
  gt_boxes = torch::stable::contiguous(gt_boxes);
  Tensor gt_index = new_tensor(boxes, {boxes.size(0)}, ScalarType::Long);
  Tensor max_iou = new_tensor(boxes, {boxes.size(0)}, boxes.scalar_type());
  if (boxes.scalar_type() == ScalarType::Double) {
    assign_typed<double>(boxes, gt_boxes, pos_iou, neg_iou, min_pos_iou, match_low_quality, gt_index, max_iou);
  } else {
    assign_typed<float>(boxes, gt_boxes, pos_iou, neg_iou, min_pos_iou, match_low_quality, gt_index, max_iou);
  }
  return {gt_index, max_iou};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CUDA, m) { m.impl("assign_max_iou", TORCH_BOX(&assign_max_iou_cuda)); }

}  // namespace fastrcnn
