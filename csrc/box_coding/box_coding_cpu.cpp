// Box coding on the CPU: threads own ranges of boxes, or of pairs of box and class (box_coding_simd.inl).
#include "box_coding.h"

#include "box_coding_simd.h"

namespace fastrcnn {
namespace {

constexpr int64_t kPairsPerThread = 8192;  // below this a second thread costs more than it saves

template <typename T>
const Box<T>* boxes_of(const Tensor& tensor) {
  return reinterpret_cast<const Box<T>*>(tensor.const_data_ptr<T>());
}

template <typename T>
Box<T>* mutable_boxes_of(Tensor& tensor) {
  return reinterpret_cast<Box<T>*>(tensor.mutable_data_ptr<T>());
}

template <typename T>
void encode_typed(const Tensor& boxes, const Tensor& targets, const DeltaScale<T>& scale, Tensor& out) {
  const Box<T>*box = boxes_of<T>(boxes), *target = boxes_of<T>(targets);
  Box<T>* deltas = mutable_boxes_of<T>(out);
  torch::stable::parallel_for(0, boxes.size(0), kPairsPerThread, [&](int64_t first, int64_t last) {
    FASTRCNN_SIMD(encode_range, box, target, scale, first, last, deltas);
  });
}

template <typename T>
void decode_typed(const DecodeParams<T>& p, Tensor& out) {
  Box<T>* decoded = mutable_boxes_of<T>(out);
  torch::stable::parallel_for(0, p.num_boxes * p.num_classes, kPairsPerThread, [&](int64_t first, int64_t last) {
    FASTRCNN_SIMD(decode_range, p, first, last, decoded);
  });
}

template <typename T>
void decode_backward_typed(const DecodeParams<T>& p, const Tensor& grad, Tensor& out) {
  const Box<T>* of_decoded = boxes_of<T>(grad);
  Box<T>* of_deltas = mutable_boxes_of<T>(out);
  torch::stable::parallel_for(0, p.num_boxes * p.num_classes, kPairsPerThread, [&](int64_t first, int64_t last) {
    FASTRCNN_SIMD(decode_backward_range, p, of_decoded, first, last, of_deltas);
  });
}

Tensor encode_boxes_cpu(Tensor boxes, Tensor targets, std::vector<double> means, std::vector<double> stds) {
  simd_level();  // a wrong FASTRCNN_SIMD is reported here and not from within a thread
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
  simd_level();  // a wrong FASTRCNN_SIMD is reported here and not from within a thread
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
  simd_level();  // a wrong FASTRCNN_SIMD is reported here and not from within a thread
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
