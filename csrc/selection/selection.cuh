// Selection of detections on CUDA. Nothing waits for the device, so every size is known beforehand.
//
// 1. Candidates: a warp owns a RoI. Its lanes share the classes: softmax in float32, sums in a fixed order. Scores sum
//    to one, so only few classes can exceed the threshold t, at most 1 / t; a RoI has room for that many candidates,
//    fills it in the order of classes, and decodes no other box.
// 2. NMS (nms.cuh), one for all images: what meets is of one image and one class. Candidates are in the order of RoIs
//    and classes, in which ties are broken. With a single image it stops at the output's size.
// 3. Output: a block owns an image, and takes the first ones of it that NMS has kept.
#pragma once

#include "../common/float_array.cuh"
#include "../common/scratch.h"
#include "../nms/nms.cuh"
#include "selection_params.h"

namespace fastrcnn {

constexpr int kCandidateThreads = 256;
constexpr int kOutputThreads = 256;

using SelectionParams = SelectParams<DeviceFloatArray>;

// How many of the scores of a RoI can exceed the threshold; one more for the rounding of scores and quotient.
inline int64_t most_above(float score_threshold, int64_t num_classes) {
  if (!(score_threshold * static_cast<float>(num_classes) > 1.0f)) return num_classes;
  return minimum(num_classes, static_cast<int64_t>(1.0f / score_threshold) + 1);
}

// [R, per_roi]
struct DetectionCandidates {
  int64_t per_roi;  // room for candidates: most_above
  Box<float>* boxes;
  float* scores;
  int64_t* segments;  // image * C + class
  bool* valid;        // false: room that is left
};

// --- 1: candidates ---------------------------------------------------------------------------------------------------

__device__ __forceinline__ float warp_maximum(float value) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value = maximum(value, __shfl_xor_sync(kFullWarp, value, distance));
  }
  return value;
}

__device__ __forceinline__ float warp_sum(float value) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, distance);
  }
  return value;
}

// -1: padding, an index that does not exist, or an image without a scale.
__device__ __forceinline__ int64_t image_of_roi(const SelectionParams& p, int64_t roi) {
  const float index = p.rois[5 * roi];
  if (!(index >= 0.0f && index < static_cast<float>(p.num_images))) return -1;
  const auto image = static_cast<int64_t>(index);
  return has_scale(p, image) ? image : -1;
}

__device__ __forceinline__ Box<float> candidate_box(const SelectionParams& p, int64_t roi, int64_t image,
                                                    int64_t label) {
  const int64_t first = 4 * (roi * p.num_classes + label);
  const Box<float> deltas{p.deltas[first], p.deltas[first + 1], p.deltas[first + 2], p.deltas[first + 3]};
  return detection_box(p, roi, image, deltas);
}

template <int threads>
__global__ void __launch_bounds__(threads) detection_candidates_kernel(SelectionParams p, DetectionCandidates out) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t roi = static_cast<int64_t>(blockIdx.x) * (threads / kWarpSize) + threadIdx.x / kWarpSize;
  if (roi >= p.num_rois) return;
  const int64_t image = image_of_roi(p, roi), first_slot = roi * out.per_roi;
  int64_t count = 0;
  if (image >= 0) {
    const int64_t first = roi * (p.num_classes + 1);
    float largest = -INFINITY;  // NaN are left out; they make the sum NaN
    for (int64_t c = lane; c <= p.num_classes; c += kWarpSize) largest = maximum(p.logits[first + c], largest);
    largest = warp_maximum(largest);
    float sum = 0.0f;
    for (int64_t c = lane; c <= p.num_classes; c += kWarpSize) sum += std::exp(p.logits[first + c] - largest);
    sum = warp_sum(sum);
    for (int64_t group = 0; group < p.num_classes; group += kWarpSize) {
      const int64_t label = group + lane;
      const float score = label < p.num_classes ? std::exp(p.logits[first + label] - largest) / sum : 0.0f;
      const bool above = label < p.num_classes && score > p.score_threshold;
      const unsigned all_above = __ballot_sync(kFullWarp, above);
      const int64_t slot = count + __popc(all_above & ((1u << lane) - 1));
      if (above && slot < out.per_roi) {
        out.boxes[first_slot + slot] = candidate_box(p, roi, image, label);
        out.scores[first_slot + slot] = score;
        out.segments[first_slot + slot] = image * p.num_classes + label;
        out.valid[first_slot + slot] = true;
      }
      count += __popc(all_above);
    }
  }
  for (int64_t slot = count + lane; slot < out.per_roi; slot += kWarpSize) {
    out.boxes[first_slot + slot] = {0, 0, 0, 0};
    out.scores[first_slot + slot] = 0.0f;
    out.segments[first_slot + slot] = 0;
    out.valid[first_slot + slot] = false;
  }
}

// --- 3: output -------------------------------------------------------------------------------------------------------

struct DetectionOutput {
  Box<float>* boxes;  // [N, K]
  float* scores;      // [N, K]
  int64_t* labels;    // [N, K]
  int64_t* count;     // [N]
};

// kept: indices of candidates by descending score, *num_kept of them.
template <int threads>
__global__ void __launch_bounds__(threads)
    detection_output_kernel(SelectionParams p, DetectionCandidates candidates, const int64_t* __restrict__ kept,
                            const int64_t* __restrict__ num_kept, DetectionOutput out) {
  const int64_t image = blockIdx.x, first_row = image * p.max_output, all = *num_kept;
  int64_t count = 0;
  for (int64_t first = 0; first < all && count < p.max_output; first += threads) {
    const int64_t rank = first + threadIdx.x;
    const int64_t i = rank < all ? kept[rank] : 0;
    const int64_t label = rank < all ? candidates.segments[i] - image * p.num_classes : -1;
    const bool own = label >= 0 && label < p.num_classes;
    const BlockRank slot = block_rank<threads>(own);
    const int64_t k = count + slot.rank;
    if (own && k < p.max_output) {
      out.boxes[first_row + k] = candidates.boxes[i];
      out.scores[first_row + k] = candidates.scores[i];
      out.labels[first_row + k] = label;
    }
    count += slot.total;
  }
  count = minimum(count, p.max_output);
  for (int64_t k = count + threadIdx.x; k < p.max_output; k += threads) {
    out.boxes[first_row + k] = {0, 0, 0, 0};
    out.scores[first_row + k] = 0.0f;
    out.labels[first_row + k] = 0;
  }
  if (threadIdx.x == 0) out.count[image] = count;
}

// --- all together ----------------------------------------------------------------------------------------------------

// Where everything lies in one piece of scratch memory.
struct SelectionScratch {
  DetectionCandidates candidates;
  int64_t *kept, *num_kept;
  NmsParams<float> nms;
  void* nms_memory;
  size_t bytes;  // of all

  // memory: null to learn `bytes`.
  SelectionScratch(const SelectionParams& p, void* memory) {
    ScratchMemory scratch(memory);
    candidates.per_roi = most_above(p.score_threshold, p.num_classes);
    const int64_t n = p.num_rois * candidates.per_roi;
    scratch.take(candidates.boxes, n);
    scratch.take(candidates.scores, n);
    scratch.take(candidates.segments, n);
    scratch.take(candidates.valid, n);
    nms = {};
    nms.boxes = candidates.boxes;
    nms.scores = candidates.scores;
    nms.class_ids = candidates.segments;
    nms.valid = candidates.valid;
    nms.num_images = 1;
    nms.num_candidates = n;
    nms.max_segment = p.num_rois;
    nms.class_bits = bits_below(p.num_images * p.num_classes);
    nms.max_output = p.num_images == 1 ? minimum(n, p.max_output) : n;
    nms.threshold = p.iou_threshold;
    scratch.take(kept, nms.max_output);
    scratch.take(num_kept, 1);
    char* rest;
    scratch.take(rest, static_cast<int64_t>(NmsScratch<float>(nms, nullptr).bytes));
    nms_memory = rest;
    bytes = scratch.bytes();
  }
};

// N, K > 0, 0 < R * most_above < 2^31. memory: SelectionScratch(p, nullptr).bytes, aligned to 256. All pointers are to
// device memory.
inline void launch_selection(const SelectionParams& p, void* memory, const DetectionOutput& out, cudaStream_t stream) {
  const SelectionScratch s(p, memory);
  launch("select_detections (candidates)", &detection_candidates_kernel<kCandidateThreads>,
         blocks_for(p.num_rois, kCandidateThreads / kWarpSize), kCandidateThreads, 0, stream, p, s.candidates);
  launch_nms(s.nms, s.nms_memory, s.kept, s.num_kept, stream);
  launch("select_detections (output)", &detection_output_kernel<kOutputThreads>, p.num_images, kOutputThreads, 0,
         stream, p, s.candidates, s.kept, s.num_kept, out);
}

}  // namespace fastrcnn
