// Pairwise IoU on the CPU: threads own rows; the columns lie in separate arrays (box_iou_simd.inl).
#include "box_iou.h"

#include <algorithm>

#include "box_iou_simd.h"

namespace fastrcnn {
namespace {

constexpr int64_t kPairsPerThread = 32768;  // below this a second thread costs more than it saves

template <typename T>
void box_iou_typed(const Tensor& a, const Tensor& b, Tensor& out) {
  const auto* rows = reinterpret_cast<const Box<T>*>(a.const_data_ptr<T>());
  const auto* columns = reinterpret_cast<const Box<T>*>(b.const_data_ptr<T>());
  const int64_t m = b.size(0);
  const SplitBoxes<T> split(columns, m);
  const BoxArrays<T> boxes = split.arrays();
  T* result = out.mutable_data_ptr<T>();
  const int64_t rows_per_thread = kPairsPerThread / std::max<int64_t>(m, 1) + 1;
  torch::stable::parallel_for(0, a.size(0), rows_per_thread, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) FASTRCNN_SIMD(iou_row, rows[i], boxes, result + i * m);
  });
}

Tensor box_iou_cpu(Tensor a, Tensor b) {
  simd_level();  // a wrong FASTRCNN_SIMD is reported here and not from within a thread
  check_box_iou(a, b);
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

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CPU, m) { m.impl("box_iou", TORCH_BOX(&box_iou_cpu)); }

}  // namespace fastrcnn
