// NMS on the CPU. The candidates of an image are sorted by score once; each class is then resolved alone (classes never
// meet, so no coordinate offset is needed) over coordinates in separate arrays (nms_greedy.h, nms_simd.inl), and the
// kept ones are read off in the order of the scores. Threads own images, or the classes of a single image.
#include "nms.h"

#include <algorithm>
#include <unordered_map>

#include "../math/score.h"
#include "nms_greedy.h"

namespace fastrcnn {
namespace {

// A candidate as a number or pair whose ascending order is the order of NMS. The low bits of a float32 score's key are
// free (math/score.h) and hold the index; check_nms keeps indices below 2^29.
constexpr uint64_t kIndexBits = (uint64_t(1) << kFirstFloatKeyBit) - 1;

uint64_t sort_key(float score, int64_t index) { return (descending_key(score) & ~kIndexBits) | uint64_t(index); }
int64_t index_of(uint64_t key) { return static_cast<int64_t>(key & kIndexBits); }
std::pair<uint64_t, int64_t> sort_key(double score, int64_t index) { return {descending_key(score), index}; }
int64_t index_of(const std::pair<uint64_t, int64_t>& key) { return key.second; }

// The candidates of one image in the order of NMS.
template <typename T>
std::vector<int64_t> sorted_candidates(const NmsParams<T>& p, int64_t offset) {
  std::vector<decltype(sort_key(T(), 0))> keys;
  keys.reserve(static_cast<size_t>(p.valid ? 0 : p.num_candidates));
  for (int64_t i = 0; i < p.num_candidates; ++i) {
    if (!p.valid || p.valid[offset + i]) keys.push_back(sort_key(p.scores[offset + i], i));
  }
  std::sort(keys.begin(), keys.end());
  std::vector<int64_t> candidates(keys.size());
  std::transform(keys.begin(), keys.end(), candidates.begin(), [](const auto& key) { return index_of(key); });
  return candidates;
}

// The candidates' positions in that order, by class.
std::vector<std::vector<int64_t>> group_by_class(const std::vector<int64_t>& candidates, const int64_t* class_ids) {
  std::vector<std::vector<int64_t>> groups;
  std::unordered_map<int64_t, size_t> group_of;
  for (size_t position = 0; position < candidates.size(); ++position) {
    const int64_t id = class_ids ? class_ids[candidates[position]] : 0;
    const size_t group = group_of.try_emplace(id, groups.size()).first->second;
    if (group == groups.size()) groups.emplace_back();
    groups[group].push_back(static_cast<int64_t>(position));
  }
  return groups;
}

// Sets keep[position] for the kept ones of one class.
template <typename T>
void resolve_class(const Box<T>* boxes, const std::vector<int64_t>& candidates, const std::vector<int64_t>& positions,
                   int64_t max_output, T threshold, uint8_t* keep) {
  greedy_nms(
      static_cast<int64_t>(positions.size()), [&](int64_t i) { return boxes[candidates[positions[i]]]; }, threshold,
      max_output, [&](int64_t i) { keep[positions[i]] = 1; });
}

template <typename T>
void nms_image(const NmsParams<T>& p, int64_t image, int64_t* indices, int64_t* count) {
  const int64_t offset = image * p.num_candidates;
  const std::vector<int64_t> candidates = sorted_candidates(p, offset);
  const auto groups = group_by_class(candidates, p.class_ids ? p.class_ids + offset : nullptr);
  std::vector<uint8_t> keep(candidates.size(), 0);
  torch::stable::parallel_for(0, static_cast<int64_t>(groups.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t g = first; g < last; ++g) {
      resolve_class(p.boxes + offset, candidates, groups[g], p.max_output, p.threshold, keep.data());
    }
  });
  int64_t found = 0;
  for (size_t i = 0; i < candidates.size() && found < p.max_output; ++i) {
    if (keep[i]) indices[found++] = candidates[i];
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
