// box_iou as a CUDA operator: checks, allocation, launch.
#include "box_iou.h"

#include "../common/current_stream.h"
#include "box_iou.cuh"

namespace fastrcnn {
namespace {

template <typename T>
void box_iou_typed(const Tensor& a, const Tensor& b, Tensor& out) {
  const CurrentStream stream(a);
  launch_box_iou(reinterpret_cast<const Box<T>*>(a.const_data_ptr<T>()), a.size(0),
                 reinterpret_cast<const Box<T>*>(b.const_data_ptr<T>()), b.size(0), out.mutable_data_ptr<T>(), stream);
}

Tensor box_iou_cuda(Tensor a, Tensor b) {
  check_box_iou(a, b);
  FASTRCNN_CHECK(b.size(0) <= INT32_MAX, "b: expected fewer than 2^31 boxes on CUDA, got ", b.size(0));
  a = torch::stable::contiguous(a);
  b = torch::stable::contiguous(b);
  Tensor out = new_tensor(a, {a.size(0), b.size(0)}, a.scalar_type());
  if (a.scalar_type() == ScalarType::Double) {
    box_iou_typed<double>(a, b, out);
  } else {
    box_iou_typed<float>(a, b, out);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CUDA, m) { m.impl("box_iou", TORCH_BOX(&box_iou_cuda)); }

}  // namespace fastrcnn
