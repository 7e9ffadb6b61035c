// Box coding on the CPU: threads own boxes.
#include "box_coding.h"

namespace fastrcnn {
namespace {

constexpr int64_t kBoxesPerThread = 1024;  // below this a second thread costs more than it saves

template <typename T>
void encode_typed(const Tensor& boxes, const Tensor& targets, const DeltaScale<T>& scale, Tensor& out) {
  const auto* box = reinterpret_cast<const Box<T>*>(boxes.const_data_ptr<T>());
  const auto* target = reinterpret_cast<const Box<T>*>(targets.const_data_ptr<T>());
  auto* deltas = reinterpret_cast<Box<T>*>(out.mutable_data_ptr<T>());
  torch::stable::parallel_for(0, boxes.size(0), kBoxesPerThread, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) deltas[i] = encode(box[i], target[i], scale);
  });
}

// out[i, c] = function(i, c).
template <typename T, typename Function>
void for_each_box_and_class(const DecodeParams<T>& p, Tensor& out, const Function& function) {
  auto* result = reinterpret_cast<Box<T>*>(out.mutable_data_ptr<T>());
  torch::stable::parallel_for(0, p.num_boxes * p.num_classes, kBoxesPerThread, [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) result[j] = function(j / p.num_classes, j % p.num_classes);
  });
}

template <typename T>
void decode_typed(const DecodeParams<T>& p, Tensor& out) {
  for_each_box_and_class(p, out, [&](int64_t i, int64_t c) { return decode_one(p, i, c); });
}

template <typename T>
void decode_backward_typed(const DecodeParams<T>& p, const Tensor& grad, Tensor& out) {
  const auto* grads = reinterpret_cast<const Box<T>*>(grad.const_data_ptr<T>());
  for_each_box_and_class(
      p, out, [&](int64_t i, int64_t c) { return decode_one_backward(p, i, c, grads[i * p.num_classes + c]); });
}

Tensor encode_boxes_cpu(Tensor boxes, Tensor targets, std::vector<double> means, std::vector<double> stds) {
  check_encode(boxes, targets);
  boxes = torch::stable::contiguous(boxes);
  targets = torch::stable::contiguous(targets);
  Tensor out = new_tensor(boxes, {boxes.size(0), 4}, boxes.scalar_type());
  if (boxes.scalar_type() == ScalarType::Double) {
    encode_typed(boxes, targets, delta_scale<double>(means, stds), out);
  } else {
    encode_typed(boxes, targets, delta_scale<float>(means, stds), out);
  }
  return out;
}

Tensor decode_boxes_cpu(Tensor boxes, Tensor deltas, std::vector<double> means, std::vector<double> stds,
                        std::optional<Tensor> max_shape) {
  check_decode(boxes, deltas, max_shape);
  boxes = torch::stable::contiguous(boxes);
  deltas = torch::stable::contiguous(deltas);
  max_shape = contiguous(max_shape);
  Tensor out = new_tensor(boxes, {boxes.size(0), deltas.size(1)}, boxes.scalar_type());
  if (boxes.scalar_type() == ScalarType::Double) {
    decode_typed(decode_params<double>(boxes, deltas, max_shape, means, stds), out);
  } else {
    decode_typed(decode_params<float>(boxes, deltas, max_shape, means, stds), out);
  }
  return out;
}

Tensor decode_boxes_backward_cpu(Tensor grad, Tensor boxes, Tensor deltas, std::vector<double> means,
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
    decode_backward_typed(decode_params<double>(boxes, deltas, max_shape, means, stds), grad, out);
  } else {
    decode_backward_typed(decode_params<float>(boxes, deltas, max_shape, means, stds), grad, out);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CPU, m) {
  m.impl("encode_boxes", TORCH_BOX(&encode_boxes_cpu));
  m.impl("decode_boxes", TORCH_BOX(&decode_boxes_cpu));
  m.impl("_decode_boxes_backward", TORCH_BOX(&decode_boxes_backward_cpu));
}

}  // namespace fastrcnn
