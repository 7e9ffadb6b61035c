// Anchors on the CPU. base_anchors has no tensor among its arguments, so it is registered for every device and always
// gives CPU numbers: it is called once per model.
#include "anchors.h"

#include <algorithm>

namespace fastrcnn {
namespace {

constexpr int64_t kAnchorsPerThread = 32768;  // below this a second thread costs more than it saves

Tensor base_anchors(double size, std::vector<double> scales, std::vector<double> ratios) {
  check_positive<float>(size, "size");
  for (const double scale : scales) check_positive<float>(scale, "scales", "positive numbers");
  for (const double ratio : ratios) check_positive<float>(ratio, "ratios", "positive numbers");
  const auto num_anchors = static_cast<int64_t>(scales.size() * ratios.size());
  Tensor out = torch::stable::empty({num_anchors, 4}, ScalarType::Float);
  auto* box = reinterpret_cast<Box<float>*>(out.mutable_data_ptr<float>());
  for (const double ratio : ratios) {
    for (const double scale : scales) {
      *box++ = base_anchor(static_cast<float>(size), static_cast<float>(scale), static_cast<float>(ratio));
    }
  }
  return out;
}

// Threads own rows of cells.
template <typename T>
void grid_anchors_typed(const Tensor& base_anchors, int64_t height, int64_t width, double stride, Tensor& out) {
  const auto* base = reinterpret_cast<const Box<T>*>(base_anchors.const_data_ptr<T>());
  auto* anchors = reinterpret_cast<Box<T>*>(out.mutable_data_ptr<T>());
  const int64_t num_anchors = base_anchors.size(0);
  const int64_t rows_per_thread = kAnchorsPerThread / std::max<int64_t>(width * num_anchors, 1) + 1;
  torch::stable::parallel_for(0, height, rows_per_thread, [&](int64_t first, int64_t last) {
    Box<T>* next = anchors + first * width * num_anchors;
    for (int64_t y = first; y < last; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        for (int64_t a = 0; a < num_anchors; ++a) *next++ = anchor_of_cell(base[a], x, y, static_cast<T>(stride));
      }
    }
  });
}

Tensor grid_anchors_cpu(Tensor base_anchors, int64_t height, int64_t width, double stride) {
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

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CompositeExplicitAutograd, m) { m.impl("base_anchors", TORCH_BOX(&base_anchors)); }

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CPU, m) { m.impl("grid_anchors", TORCH_BOX(&grid_anchors_cpu)); }

}  // namespace fastrcnn
