// Max-IoU assignment on the CPU, without an IoU matrix. Threads own blocks of boxes (assignment_simd.inl); a block
// meets only the objects that its bounding box overlaps, since the IoU with the others is 0. Anchors come row by row,
// so most objects are skipped.
//
// A low-quality match is a box whose IoU equals the largest that an object has with any box. While blocks meet objects,
// those blocks are noted that reach an object's largest IoU so far; once all are done, the few notes that reach the
// final one are looked through again. A maximum does not depend on the order in which threads come to it, so the result
// does not depend on the number of threads.
#include "assignment.h"

#include <algorithm>
#include <mutex>

#include "assignment_simd.h"

namespace fastrcnn {
namespace {

// Below this many pairs of box and object a second thread costs more than it saves.
constexpr int64_t kPairsPerThread = int64_t(1) << 18;

// Block `block` has a box whose IoU with object g is `largest`.
template <typename T>
struct LargestNote {
  int64_t block, g;
  T largest;
};

template <typename T>
class Assigner {
 public:
  Assigner(const AssignParams<T>& params, int64_t* gt_index, T* max_iou)
      : p_(params),
        gt_index_(gt_index),
        max_iou_(max_iou),
        split_gt_(params.gt_boxes, params.num_gt),
        gt_(split_gt_.arrays()),
        gt_max_(static_cast<size_t>(params.num_gt), T(0)) {}

  void run() {
    const int64_t blocks = (p_.num_boxes + kAssignBlock - 1) / kAssignBlock;
    const int64_t grain = kPairsPerThread / (kAssignBlock * (p_.num_gt + 1)) + 1;
    torch::stable::parallel_for(0, blocks, grain, [&](int64_t first, int64_t last) { assign_blocks(first, last); });
    if (p_.match_low_quality) match_low_quality();
  }

 private:
  void assign_blocks(int64_t first, int64_t last) {
    BoxBlock<T> block;
    std::vector<T> gt_max(gt_max_.size(), T(0)), largest(gt_max_.size());
    std::vector<int32_t> met(gt_max_.size());
    std::vector<LargestNote<T>> notes;
    for (int64_t b = first; b < last; ++b) {
      const int64_t start = b * kAssignBlock, n = std::min(kAssignBlock, p_.num_boxes - start);
      FASTRCNN_SIMD(load_block, p_.boxes + start, n, block);
      const int64_t num_met = FASTRCNN_SIMD(meet_objects, block, gt_, p_.pos_iou, met.data(), largest.data());
      for (int64_t k = 0; k < num_met; ++k) {
        T& so_far = gt_max[met[k]];
        if (largest[k] >= p_.min_pos_iou && largest[k] >= so_far) notes.push_back({b, met[k], largest[k]});
        so_far = maximum(so_far, largest[k]);
      }
      FASTRCNN_SIMD(assign_block, block, n, p_, gt_index_ + start, max_iou_ + start);
    }
    const std::lock_guard<std::mutex> guard(lock_);
    for (size_t g = 0; g < gt_max.size(); ++g) gt_max_[g] = maximum(gt_max_[g], gt_max[g]);
    notes_.insert(notes_.end(), notes.begin(), notes.end());
  }

  void match_low_quality() {
    // Later objects overwrite earlier ones; blocks do not touch each other.
    std::sort(notes_.begin(), notes_.end(), [](const auto& a, const auto& b) { return a.g < b.g; });
    auto note = notes_.begin();
    for (int64_t g = 0; g < p_.num_gt; ++g) {
      if (gt_max_[g] == T(0) && p_.min_pos_iou <= T(0)) {  // nothing overlaps g: all boxes have its largest IoU, 0
        std::fill(gt_index_, gt_index_ + p_.num_boxes, g + 1);
      }
      for (; note != notes_.end() && note->g == g; ++note) {
        if (note->largest == gt_max_[g] && note->largest > T(0)) match_block(note->block, g);
      }
    }
  }

  // Gives object g the boxes of a block that have its largest IoU.
  void match_block(int64_t b, int64_t g) {
    BoxBlock<T> block;
    int32_t matches[kAssignBlock];
    const int64_t start = b * kAssignBlock, n = std::min(kAssignBlock, p_.num_boxes - start);
    FASTRCNN_SIMD(load_block, p_.boxes + start, n, block);
    FASTRCNN_SIMD(equal_iou, block, gt_, g, gt_max_[g], matches);
    for (int64_t i = 0; i < n; ++i) {
      if (matches[i]) gt_index_[start + i] = g + 1;
    }
  }

  const AssignParams<T>& p_;
  int64_t* gt_index_;
  T* max_iou_;
  SplitBoxes<T> split_gt_;
  BoxArrays<T> gt_;
  std::vector<T> gt_max_;  // largest IoU of each object
  std::vector<LargestNote<T>> notes_;
  std::mutex lock_;  // of gt_max_ and notes_
};

template <typename T>
void assign_tensors(const Tensor& boxes, const Tensor& gt_boxes, double pos_iou, double neg_iou, double min_pos_iou,
                    bool match_low_quality, Tensor& gt_index, Tensor& max_iou) {
  const auto p = assign_params<T>(boxes, gt_boxes, pos_iou, neg_iou, min_pos_iou, match_low_quality);
  Assigner<T>(p, gt_index.mutable_data_ptr<int64_t>(), max_iou.mutable_data_ptr<T>()).run();
}

std::tuple<Tensor, Tensor> assign_max_iou_cpu(Tensor boxes, Tensor gt_boxes, double pos_iou, double neg_iou,
                                              double min_pos_iou, bool match_low_quality) {
  simd_level();  // a wrong FASTRCNN_SIMD is reported here and not from within a thread
  check_assign(boxes, gt_boxes, pos_iou, neg_iou, min_pos_iou);
  boxes = torch::stable::contiguous(boxes);
  gt_boxes = torch::stable::contiguous(gt_boxes);
  Tensor gt_index = new_tensor(boxes, {boxes.size(0)}, ScalarType::Long);
  Tensor max_iou = new_tensor(boxes, {boxes.size(0)}, boxes.scalar_type());
  if (boxes.scalar_type() == ScalarType::Double) {
    assign_tensors<double>(boxes, gt_boxes, pos_iou, neg_iou, min_pos_iou, match_low_quality, gt_index, max_iou);
  } else {
    assign_tensors<float>(boxes, gt_boxes, pos_iou, neg_iou, min_pos_iou, match_low_quality, gt_index, max_iou);
  }
  return {gt_index, max_iou};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CPU, m) { m.impl("assign_max_iou", TORCH_BOX(&assign_max_iou_cpu)); }

}  // namespace fastrcnn
