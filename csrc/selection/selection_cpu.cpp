// Selection of detections on the CPU. Threads first own blocks of RoIs, whose softmax names the candidates: RoI and
// class pairs above the score threshold, a small part of all. Then threads own segments, the candidates of one class in
// one image, which are decoded, sorted and thinned by NMS. Last come the best of each image's segments. Candidates are
// told apart by RoI and class, so their order, and the result, does not depend on the threads.
#include "selection.h"

#include <algorithm>

#include "../common/tasks.h"
#include "../nms/nms_greedy.h"
#include "selection_simd.h"

namespace fastrcnn {
namespace {

constexpr int64_t kRoisPerBlock = 64;

struct Candidate {
  float score;
  int64_t roi, label;
  Box<float> box;
};

// The order of detections; scores are numbers here.
bool comes_before(const Candidate& a, const Candidate& b) {
  if (a.score != b.score) return a.score > b.score;
  return a.roi != b.roi ? a.roi < b.roi : a.label < b.label;
}

struct Outputs {
  Box<float>* boxes;  // [N, K]
  float* scores;      // [N, K]
  int64_t* labels;    // [N, K]
  int64_t* count;     // [N]
};

class DetectionSelector {
 public:
  explicit DetectionSelector(const SelectParams<FloatArray>& params) : p_(params) {}

  void run(const Outputs& out) {
    find_candidates();
    for_each_task(p_.num_images * p_.num_classes, [&](int64_t segment) { resolve(segments_[segment]); });
    for_each_task(p_.num_images, [&](int64_t image) { out.count[image] = write_best(image, out); });
  }

 private:
  int64_t image_of(int64_t roi) const { return static_cast<int64_t>(p_.rois[5 * roi]); }

  // Fills segments_ with the candidates, not decoded, in the order of RoIs.
  void find_candidates() {
    std::vector<std::vector<Candidate>> blocks((p_.num_rois + kRoisPerBlock - 1) / kRoisPerBlock);
    for_each_task(static_cast<int64_t>(blocks.size()), [&](int64_t b) {
      const int64_t first = b * kRoisPerBlock, last = std::min(first + kRoisPerBlock, p_.num_rois);
      blocks[b] = candidates_among(first, last);
    });
    segments_.resize(p_.num_images * p_.num_classes);
    for (const auto& block : blocks) {
      for (const Candidate& c : block) segments_[image_of(c.roi) * p_.num_classes + c.label].push_back(c);
    }
  }

  std::vector<Candidate> candidates_among(int64_t first, int64_t last) const {
    const int64_t columns = p_.num_classes + 1;
    const int64_t padded = (columns + kSoftmaxLanes - 1) / kSoftmaxLanes * kSoftmaxLanes;
    std::vector<float> row(padded);
    const float log_threshold = p_.score_threshold > 0 ? std::log(p_.score_threshold) : -INFINITY;
    std::vector<Candidate> candidates;
    for (int64_t roi = first; roi < last; ++roi) {
      if (image_of(roi) < 0) continue;
      const float* logits = p_.logits.row(roi * columns, 1, columns, row.data());
      if (logits != row.data()) std::copy(logits, logits + columns, row.data());
      std::fill(row.begin() + columns, row.end(), -INFINITY);
      if (!FASTRCNN_SIMD(softmax_above, row.data(), p_.num_classes, log_threshold)) continue;
      for (int64_t c = 0; c < p_.num_classes; ++c) {
        if (row[c] > p_.score_threshold) candidates.push_back({row[c], roi, c, {}});
      }
    }
    return candidates;
  }

  // Decodes and sorts the candidates of a segment and leaves those that NMS keeps.
  void resolve(std::vector<Candidate>& segment) const {
    for (Candidate& c : segment) c.box = box_of(c);
    std::sort(segment.begin(), segment.end(), comes_before);
    std::vector<Candidate> kept;
    greedy_nms(
        static_cast<int64_t>(segment.size()), [&](int64_t i) { return segment[i].box; }, p_.iou_threshold,
        p_.max_output, [&](int64_t i) { kept.push_back(segment[i]); });
    segment.swap(kept);
  }

  Box<float> box_of(const Candidate& c) const {
    const int64_t first = 4 * (c.roi * p_.num_classes + c.label);
    const Box<float> deltas{p_.deltas[first], p_.deltas[first + 1], p_.deltas[first + 2], p_.deltas[first + 3]};
    return detection_box(p_, c.roi, image_of(c.roi), deltas);
  }

  int64_t write_best(int64_t image, const Outputs& out) const {
    std::vector<Candidate> kept;
    for (int64_t c = 0; c < p_.num_classes; ++c) {
      const auto& segment = segments_[image * p_.num_classes + c];
      kept.insert(kept.end(), segment.begin(), segment.end());
    }
    const int64_t count = std::min(static_cast<int64_t>(kept.size()), p_.max_output), first = image * p_.max_output;
    std::partial_sort(kept.begin(), kept.begin() + count, kept.end(), comes_before);
    for (int64_t k = 0; k < p_.max_output; ++k) {
      const Candidate detection = k < count ? kept[k] : Candidate{};
      out.boxes[first + k] = detection.box;
      out.scores[first + k] = detection.score;
      out.labels[first + k] = detection.label;
    }
    return count;
  }

  const SelectParams<FloatArray>& p_;
  std::vector<std::vector<Candidate>> segments_;  // [N, C]
};

// IndexError in Python.
void check_image_indices(const SelectParams<FloatArray>& p) {
  for (int64_t r = 0; r < p.num_rois; ++r) {
    const float index = p.rois[5 * r];
    if (index >= -1 && index < static_cast<float>(p.num_images) && index == std::floor(index)) continue;
    throw std::out_of_range(text("rois[", r, ", 0]: expected the index of one of ", p.num_images,
                                 " images (or -1 for padding), got ", index));
  }
}

void check_scale_factors(const SelectParams<FloatArray>& p) {
  for (int64_t i = 0; i < p.num_images; ++i) {
    FASTRCNN_CHECK(has_scale(p, i), "scale_factors[", i, "]: expected two positive numbers (of width, of height), got ",
                   p.scale_factors[2 * i], " and ", p.scale_factors[2 * i + 1]);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> select_detections_cpu(Tensor logits, Tensor deltas, Tensor rois,
                                                                 Tensor image_sizes, Tensor scale_factors,
                                                                 double score_threshold, double iou_threshold,
                                                                 int64_t max_output, std::vector<double> means,
                                                                 std::vector<double> stds) {
  simd_level();  // a wrong FASTRCNN_SIMD is reported here and not from within a thread
  check_selection(logits, deltas, rois, image_sizes, scale_factors, score_threshold, iou_threshold, max_output);
  logits = torch::stable::contiguous(logits);
  deltas = torch::stable::contiguous(deltas);
  rois = torch::stable::contiguous(rois);
  image_sizes = torch::stable::contiguous(image_sizes);
  scale_factors = torch::stable::contiguous(scale_factors);
  const int64_t capacity = std::min(logits.size(0) * (logits.size(1) - 1), max_output), images = image_sizes.size(0);
  const SelectParams<FloatArray> p = select_params(logits, deltas, rois, image_sizes, scale_factors, score_threshold,
                                                   iou_threshold, capacity, means, stds, &float_array);
  check_image_indices(p);
  check_scale_factors(p);
  Tensor boxes = new_tensor(rois, {images, capacity, 4}, ScalarType::Float);
  Tensor scores = new_tensor(rois, {images, capacity}, ScalarType::Float);
  Tensor labels = new_tensor(rois, {images, capacity}, ScalarType::Long);
  Tensor count = new_tensor(rois, {images}, ScalarType::Long);
  DetectionSelector(p).run({reinterpret_cast<Box<float>*>(boxes.mutable_data_ptr<float>()),
                            scores.mutable_data_ptr<float>(), labels.mutable_data_ptr<int64_t>(),
                            count.mutable_data_ptr<int64_t>()});
  return {boxes, scores, labels, count};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CPU, m) { m.impl("select_detections", TORCH_BOX(&select_detections_cpu)); }

}  // namespace fastrcnn
