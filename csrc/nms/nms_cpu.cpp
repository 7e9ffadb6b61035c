// NMS on the CPU. The candidates of an image are sorted by score once, and these by class; each class is then resolved
// alone (nms_greedy.h; classes never meet, so no coordinate offset is needed), and the kept ones are read off in the
// order of the scores. Threads own images, or the classes of a single image.
#include "nms.h"

#include <algorithm>

#include "../common/radix_sort.h"
#include "../math/score.h"
#include "nms_greedy.h"

namespace fastrcnn {
namespace {

constexpr int64_t kBoxesPerThread = 4096;  // below this a second thread costs more than it saves

// The candidates of one image in the order of NMS.
template <typename T>
std::vector<KeyedIndex> sorted_candidates(const NmsParams<T>& p, int64_t offset) {
  std::vector<KeyedIndex> candidates;
  candidates.reserve(static_cast<size_t>(p.num_candidates));
  for (int64_t i = 0; i < p.num_candidates; ++i) {
    if (!p.valid || p.valid[offset + i]) candidates.push_back({descending_key(p.scores[offset + i]), i});
  }
  radix_sort(candidates);
  return candidates;
}

// The candidates' positions in that order, class by class; within a class in the same order.
std::vector<KeyedIndex> group_by_class(const std::vector<KeyedIndex>& candidates, const int64_t* class_ids) {
  std::vector<KeyedIndex> positions(candidates.size());
  for (size_t i = 0; i < candidates.size(); ++i) {
    const uint64_t id = class_ids ? static_cast<uint64_t>(class_ids[candidates[i].index]) : 0;
    positions[i] = {id, static_cast<int64_t>(i)};
  }
  radix_sort(positions);
  return positions;
}

template <typename T>
void nms_image(const NmsParams<T>& p, int64_t image, int64_t* indices, int64_t* count) {
  const int64_t offset = image * p.num_candidates;
  const std::vector<KeyedIndex> candidates = sorted_candidates(p, offset);
  const std::vector<KeyedIndex> positions = group_by_class(candidates, p.class_ids ? p.class_ids + offset : nullptr);
  std::vector<size_t> starts;  // of the classes among the positions, and the end
  for (size_t i = 0; i < positions.size(); ++i) {
    if (i == 0 || positions[i].key != positions[i - 1].key) starts.push_back(i);
  }
  const auto num_classes = static_cast<int64_t>(starts.size());
  starts.push_back(positions.size());
  std::vector<uint8_t> keep(candidates.size(), 0);
  const int64_t grain = num_classes * kBoxesPerThread / std::max<int64_t>(p.num_candidates, 1) + 1;
  torch::stable::parallel_for(0, num_classes, grain, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      const KeyedIndex* of_class = positions.data() + starts[c];
      greedy_nms(
          static_cast<int64_t>(starts[c + 1] - starts[c]),
          [&](int64_t i) { return p.boxes[offset + candidates[of_class[i].index].index]; }, p.threshold, p.max_output,
          [&](int64_t i) { keep[of_class[i].index] = 1; });
    }
  });
  int64_t found = 0;
  for (size_t i = 0; i < candidates.size() && found < p.max_output; ++i) {
    if (keep[i]) indices[found++] = candidates[i].index;
  }
  *count = found;
  std::fill(indices + found, indices + p.max_output, int64_t(0));
}

template <typename T>
void nms_typed(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& class_ids,
               const std::optional<Tensor>& valid, double iou_threshold, Tensor& indices, Tensor& count) {
  const auto p = nms_params<T>(boxes, scores, class_ids, valid, iou_threshold, indices.size(1));
  int64_t* index_data = indices.mutable_data_ptr<int64_t>();
  int64_t* count_data = count.mutable_data_ptr<int64_t>();
  if (p.num_images == 1) {  // outside a parallel region, so that the classes can have one
    nms_image(p, 0, index_data, count_data);
    return;
  }
  torch::stable::parallel_for(0, p.num_images, 1, [&](int64_t first, int64_t last) {
    for (int64_t image = first; image < last; ++image) {
      nms_image(p, image, index_data + image * p.max_output, count_data + image);
    }
  });
}

std::tuple<Tensor, Tensor> nms_cpu(Tensor boxes, Tensor scores, std::optional<Tensor> class_ids,
                                   std::optional<Tensor> valid, double iou_threshold, int64_t max_output) {
  simd_level();  // a wrong FASTRCNN_SIMD is reported here and not from within a thread
  check_nms(boxes, scores, class_ids, valid, iou_threshold, max_output);
  boxes = torch::stable::contiguous(boxes);
  scores = torch::stable::contiguous(scores);
  class_ids = contiguous(class_ids);
  valid = contiguous(valid);
  const int64_t images = boxes.size(0), capacity = std::min(boxes.size(1), max_output);
  Tensor indices = new_tensor(boxes, {images, capacity}, ScalarType::Long);
  Tensor count = new_tensor(boxes, {images}, ScalarType::Long);
  if (boxes.scalar_type() == ScalarType::Double) {
    nms_typed<double>(boxes, scores, class_ids, valid, iou_threshold, indices, count);
  } else {
    nms_typed<float>(boxes, scores, class_ids, valid, iou_threshold, indices, count);
  }
  return {indices, count};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CPU, m) { m.impl("nms", TORCH_BOX(&nms_cpu)); }

}  // namespace fastrcnn
