// grid_anchors as a CUDA operator; base_anchors stays on the CPU (anchors_cpu.cpp).
#include "anchors.h"

#include "../common/current_stream.h"
#include "anchors.cuh"

namespace fastrcnn {
namespace {

template <typename T>
void grid_anchors_typed(const Tensor& base_anchors, int64_t height, int64_t width, double stride, Tensor& out) {
  const CurrentStream stream(base_anchors);
  launch_grid_anchors(reinterpret_cast<const Box<T>*>(base_anchors.const_data_ptr<T>()), base_anchors.size(0), height,
                      width, static_cast<T>(stride), reinterpret_cast<Box<T>*>(out.mutable_data_ptr<T>()), stream);
}

Tensor grid_anchors_cuda(Tensor base_anchors, int64_t height, int64_t width, double stride) {
  check_grid_anchors(base_anchors, height, width, stride);
  base_anchors = torch::stable::contiguous(base_anchors);
  Tensor out = new_tensor(base_anchors, {height * width * base_anchors.size(0), 4}, base_anchors.scalar_type());
  if (base_anchors.scalar_type() == ScalarType::Double) {
    grid_anchors_typed<double>(base_anchors, height, width, stride, out);
  } else {
    grid_anchors_typed<float>(base_anchors, height, width, stride, out);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CUDA, m) { m.impl("grid_anchors", TORCH_BOX(&grid_anchors_cuda)); }

}  // namespace fastrcnn
