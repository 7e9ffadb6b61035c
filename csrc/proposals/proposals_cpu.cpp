// Proposals on the CPU. A task is one level of one image, from its logits to the boxes that NMS within the level keeps:
// the top-k reads the maps in place (top_k.h), and only the chosen anchors are decoded. Threads take tasks as they
// come; a task depends on nothing but its inputs, so the result does not depend on the threads. The levels of an image,
// each sorted by score, are merged at the end.
#include "proposals.h"

#include "../common/tasks.h"
#include "../nms/nms_greedy.h"
#include "top_k.h"

namespace fastrcnn {
namespace {

struct Proposal {
  Box<float> box;
  float logit;
};

// The order of proposals: descending logits, NaN after all numbers.
bool comes_before(float a, float b) { return a > b || (b != b && a == a); }

class ProposalGenerator {
 public:
  ProposalGenerator(std::vector<ProposalLevel<FloatArray>> levels, const float* image_sizes, int64_t num_images,
                    int64_t pre_nms, int64_t capacity, double iou_threshold, double min_size)
      : levels_(std::move(levels)),
        image_sizes_(image_sizes),
        num_images_(num_images),
        pre_nms_(pre_nms),
        capacity_(capacity),
        threshold_(round_down<float>(iou_threshold)),
        min_size_(static_cast<float>(min_size)),
        kept_(static_cast<size_t>(num_images) * levels_.size()) {}

  void run(Box<float>* boxes, float* scores, int64_t* count) {
    const auto num_levels = static_cast<int64_t>(levels_.size());
    for_each_task(num_images_ * num_levels, [&](int64_t task) {
      const int64_t image = task % num_images_, level = task / num_images_;  // the largest maps come first
      kept_[image * num_levels + level] = suppress(decode_top(levels_[level], image));
    });
    for_each_task(num_images_, [&](int64_t image) {
      count[image] = merge(&kept_[image * num_levels], boxes + image * capacity_, scores + image * capacity_);
    });
  }

 private:
  // The best anchors of a level as boxes inside the image, those without enough width and height left out.
  std::vector<Proposal> decode_top(const ProposalLevel<FloatArray>& level, int64_t image) const {
    std::vector<KeyedIndex> top = top_anchors(level, image, pre_nms_);
    const auto number = std::find_if(top.begin(), top.end(), [](const KeyedIndex& ranked) {
      const float logit = logit_of_rank(ranked.key);
      return logit == logit;
    });
    std::rotate(top.begin(), number, top.end());  // NaN: the first of the top-k, the last of NMS
    const float height = image_sizes_[2 * image], width = image_sizes_[2 * image + 1];
    std::vector<Proposal> proposals;
    proposals.reserve(top.size());
    for (const auto& [rank, anchor] : top) {
      const Box<float> box = proposal_box(level.anchors[anchor], deltas_of(level, image, anchor), height, width);
      if (is_large_enough(box, min_size_)) {
        proposals.push_back({box, logit_of_rank(rank)});
      }
    }
    return proposals;
  }

  static Box<float> deltas_of(const ProposalLevel<FloatArray>& level, int64_t image, int64_t anchor) {
    const FloatArray& deltas = level.deltas;
    const int64_t first = level.delta_place(image, anchor), stride = level.delta_strides[1];
    return {deltas[first], deltas[first + stride], deltas[first + 2 * stride], deltas[first + 3 * stride]};
  }

  std::vector<Proposal> suppress(const std::vector<Proposal>& proposals) const {
    std::vector<Proposal> kept;
    greedy_nms(
        static_cast<int64_t>(proposals.size()), [&](int64_t i) { return proposals[i].box; }, threshold_, capacity_,
        [&](int64_t i) { kept.push_back(proposals[i]); });
    return kept;
  }

  // Writes the best of an image's levels, of equal ones that of the first level first; returns how many there are.
  int64_t merge(const std::vector<Proposal>* levels, Box<float>* boxes, float* scores) const {
    std::vector<size_t> next(levels_.size(), 0);
    int64_t count = 0;
    for (; count < capacity_; ++count) {
      const Proposal* best = nullptr;
      size_t best_level = 0;
      for (size_t l = 0; l < next.size(); ++l) {
        if (next[l] == levels[l].size()) continue;
        const Proposal& head = levels[l][next[l]];
        if (best == nullptr || comes_before(head.logit, best->logit)) best = &head, best_level = l;
      }
      if (best == nullptr) break;
      ++next[best_level];
      boxes[count] = best->box;
      scores[count] = sigmoid(best->logit);
    }
    std::fill(boxes + count, boxes + capacity_, Box<float>{0, 0, 0, 0});
    std::fill(scores + count, scores + capacity_, 0.0f);
    return count;
  }

  const std::vector<ProposalLevel<FloatArray>> levels_;
  const float* image_sizes_;  // [N, 2]
  const int64_t num_images_, pre_nms_, capacity_;
  const float threshold_, min_size_;
  std::vector<std::vector<Proposal>> kept_;  // [N, L], by descending score
};

std::tuple<Tensor, Tensor, Tensor> generate_proposals_cpu(std::vector<Tensor> objectness, std::vector<Tensor> deltas,
                                                          std::vector<Tensor> anchors, Tensor image_sizes,
                                                          int64_t pre_nms, int64_t post_nms, double iou_threshold,
                                                          double min_size) {
  simd_level();  // a wrong FASTRCNN_SIMD is reported here and not from within a thread
  check_proposals(objectness, deltas, anchors, image_sizes, pre_nms, post_nms, iou_threshold, min_size);
  image_sizes = torch::stable::contiguous(image_sizes);
  std::vector<ProposalLevel<FloatArray>> levels;
  int64_t candidates = 0;
  for (size_t l = 0; l < objectness.size(); ++l) {
    anchors[l] = torch::stable::contiguous(anchors[l]);
    levels.push_back(proposal_level(objectness[l], deltas[l], anchors[l], &float_array));
    candidates += std::min(pre_nms, levels[l].size());
  }
  const int64_t images = image_sizes.size(0), capacity = std::min(candidates, post_nms);
  Tensor boxes = new_tensor(image_sizes, {images, capacity, 4}, ScalarType::Float);
  Tensor scores = new_tensor(image_sizes, {images, capacity}, ScalarType::Float);
  Tensor count = new_tensor(image_sizes, {images}, ScalarType::Long);
  ProposalGenerator generator(std::move(levels), image_sizes.const_data_ptr<float>(), images, pre_nms, capacity,
                              iou_threshold, min_size);
  generator.run(reinterpret_cast<Box<float>*>(boxes.mutable_data_ptr<float>()), scores.mutable_data_ptr<float>(),
                count.mutable_data_ptr<int64_t>());
  return {boxes, scores, count};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CPU, m) { m.impl("generate_proposals", TORCH_BOX(&generate_proposals_cpu)); }

}  // namespace fastrcnn
