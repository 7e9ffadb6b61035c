// Box coding as CUDA operators: checks, allocation, launch.
#include "box_coding.h"

#include "../common/current_stream.h"
#include "box_coding.cuh"

namespace fastrcnn {
namespace {

template <typename T>
const Box<T>* boxes_of(const Tensor& tensor) {
  return reinterpret_cast<const Box<T>*>(tensor.const_data_ptr<T>());
}

template <typename T>
Box<T>* mutable_boxes_of(Tensor& tensor) {
  return reinterpret_cast<Box<T>*>(tensor.mutable_data_ptr<T>());
}

template <typename T>
void encode_typed(const Tensor& boxes, const Tensor& targets, const std::vector<double>& means,
                  const std::vector<double>& stds, Tensor& out) {
  const CurrentStream stream(boxes);
  launch_encode_boxes(boxes_of<T>(boxes), boxes_of<T>(targets), boxes.size(0), delta_scale<T>(means, stds),
                      mutable_boxes_of<T>(out), stream);
}

Tensor encode_boxes_cuda(Tensor boxes, Tensor targets, std::vector<double> means, std::vector<double> stds) {
  check_encode(boxes, targets);
  boxes = torch::stable::contiguous(boxes);
  targets = torch::stable::contiguous(targets);
  Tensor out = new_tensor(boxes, {boxes.size(0), 4}, boxes.scalar_type());
  if (boxes.scalar_type() == ScalarType::Double) {
    encode_typed<double>(boxes, targets, means, stds, out);
  } else {
    encode_typed<float>(boxes, targets, means, stds, out);
  }
  return out;
}

template <typename T>
void decode_typed(const Tensor& boxes, const Tensor& deltas, const std::optional<Tensor>& max_shape,
                  const std::vector<double>& means, const std::vector<double>& stds, Tensor& out) {
  const CurrentStream stream(boxes);
  launch_decode_boxes(decode_params<T>(boxes, deltas, max_shape, means, stds), mutable_boxes_of<T>(out), stream);
}

Tensor decode_boxes_cuda(Tensor boxes, Tensor deltas, std::vector<double> means, std::vector<double> stds,
                         std::optional<Tensor> max_shape) {
  check_decode(boxes, deltas, max_shape);
  boxes = torch::stable::contiguous(boxes);
  deltas = torch::stable::contiguous(deltas);
  max_shape = contiguous(max_shape);
  Tensor out = new_tensor(boxes, {boxes.size(0), deltas.size(1)}, boxes.scalar_type());
  if (boxes.scalar_type() == ScalarType::Double) {
    decode_typed<double>(boxes, deltas, max_shape, means, stds, out);
  } else {
    decode_typed<float>(boxes, deltas, max_shape, means, stds, out);
  }
  return out;
}

template <typename T>
void decode_backward_typed(const Tensor& grad, const Tensor& boxes, const Tensor& deltas,
                           const std::optional<Tensor>& max_shape, const std::vector<double>& means,
                           const std::vector<double>& stds, Tensor& out) {
  const CurrentStream stream(boxes);
  launch_decode_boxes_backward(decode_params<T>(boxes, deltas, max_shape, means, stds), boxes_of<T>(grad),
                               mutable_boxes_of<T>(out), stream);
}

Tensor decode_boxes_backward_cuda(Tensor grad, Tensor boxes, Tensor deltas, std::vector<double> means,
                                  std::vector<double> stds, std::optional<Tensor> max_shape) {
  check_decode(boxes, deltas, max_shape);
  check_shape(grad, "grad", "that of the decoded boxes", {deltas.size(0), deltas.size(1)});
  check_dtype(grad, "grad", boxes.scalar_type());
  grad = torch::stable::contiguous(grad);
  boxes = torch::stable::contiguous(boxes);
  deltas = torch::stable::contiguous(deltas);
  max_shape = contiguous(max_shape);
  Tensor out = new_tensor(deltas, {deltas.size(0), deltas.size(1)}, deltas.scalar_type());
  if (boxes.scalar_type() == ScalarType::Double) {
    decode_backward_typed<double>(grad, boxes, deltas, max_shape, means, stds, out);
  } else {
    decode_backward_typed<float>(grad, boxes, deltas, max_shape, means, stds, out);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CUDA, m) {
  m.impl("encode_boxes", TORCH_BOX(&encode_boxes_cuda));
  m.impl("decode_boxes", TORCH_BOX(&decode_boxes_cuda));
  m.impl("_decode_boxes_backward", TORCH_BOX(&decode_boxes_backward_cuda));
}

}  // namespace fastrcnn
