// Proposals on CUDA: the top-k of every level (top_k.cuh), whose last kernel also decodes the chosen anchors; NMS
// within each level, by whose order the best of all levels come first (nms.cuh); and a thread per proposal that writes
// it. Nothing waits for the device: every size is known beforehand, what NMS keeps is counted there.
#pragma once

#include "../nms/nms.cuh"
#include "top_k.cuh"

namespace fastrcnn {

// The candidates of NMS: [N, M], M = num_chosen of the top-k.
struct ProposalCandidates {
  Box<float>* boxes;
  float* logits;
  int64_t* levels;
  bool* valid;  // large enough
};

struct ProposalParams {
  TopKParams top_k;
  const float* image_sizes;  // [N, 2]: height, width
  int64_t max_output;        // P
  float iou_threshold;       // round_down of the user's double
  float min_size;
};

// A thread owns a chosen anchor.
struct DecodeChosen {
  ProposalParams p;
  ProposalCandidates out;

  __device__ void operator()(int64_t image, int level, int64_t place, float logit, int64_t anchor) const {
    const ProposalLevel<DeviceFloatArray>& maps = p.top_k.levels[level].maps;
    const int64_t first = maps.delta_place(image, anchor), stride = maps.delta_strides[1];
    const Box<float> deltas{maps.deltas[first], maps.deltas[first + stride], maps.deltas[first + 2 * stride],
                            maps.deltas[first + 3 * stride]};
    const float height = p.image_sizes[2 * image], width = p.image_sizes[2 * image + 1];
    const Box<float> box = proposal_box(maps.anchors[anchor], deltas, height, width);
    const int64_t i = image * p.top_k.num_chosen + place;
    out.boxes[i] = box;
    out.logits[i] = logit;
    out.levels[i] = level;
    out.valid[i] = is_large_enough(box, p.min_size);
  }
};

// A thread owns a row of the output: proposal k of an image, zeros beyond their count.
struct WriteProposal {
  ProposalCandidates candidates;
  int64_t num_candidates, max_output;  // M, P
  const int64_t* kept;                 // [N, P]
  const int64_t* count;                // [N]
  Box<float>* boxes;
  float* scores;

  __device__ void operator()(int64_t row) const {
    const int64_t image = row / max_output, k = row % max_output;
    const bool exists = k < count[image];
    const int64_t i = image * num_candidates + kept[row];
    boxes[row] = exists ? candidates.boxes[i] : Box<float>{0, 0, 0, 0};
    scores[row] = exists ? sigmoid(candidates.logits[i]) : 0.0f;
  }
};

// Where everything lies in one piece of scratch memory.
struct ProposalScratch {
  ProposalCandidates candidates;
  int64_t* kept;
  NmsParams<float> nms;
  void* nms_memory;
  size_t bytes;  // of all

  // memory: null to learn `bytes`. Sets the scratch pointers of p.
  ProposalScratch(ProposalParams& p, void* memory) {
    ScratchMemory scratch(memory);
    p.top_k.take_scratch(scratch);
    const int64_t images = p.top_k.num_images, n = images * p.top_k.num_chosen;
    scratch.take(candidates.boxes, n);
    scratch.take(candidates.logits, n);
    scratch.take(candidates.levels, n);
    scratch.take(candidates.valid, n);
    scratch.take(kept, images * p.max_output);
    int64_t most = 0;
    for (int l = 0; l < p.top_k.num_levels; ++l) most = maximum(most, p.top_k.levels[l].k);
    nms = {};
    nms.boxes = candidates.boxes;
    nms.scores = candidates.logits;
    nms.class_ids = p.top_k.num_levels > 1 ? candidates.levels : nullptr;
    nms.valid = candidates.valid;
    nms.num_images = images;
    nms.num_candidates = p.top_k.num_chosen;
    nms.max_segment = most;
    nms.class_bits = bits_below(p.top_k.num_levels);
    nms.max_output = p.max_output;
    nms.threshold = p.iou_threshold;
    char* rest;
    scratch.take(rest, static_cast<int64_t>(NmsScratch<float>(nms, nullptr).bytes));
    nms_memory = rest;
    bytes = scratch.bytes();
  }
};

// boxes: [N, P], scores: [N, P], count: [N]; N, P > 0, N * M < 2^31. memory: ProposalScratch(p, nullptr).bytes, aligned
// to 256. All pointers are to device memory.
inline void launch_proposals(ProposalParams p, void* memory, Box<float>* boxes, float* scores, int64_t* count,
                             cudaStream_t stream) {
  const ProposalScratch s(p, memory);
  launch_top_k(p.top_k, DecodeChosen{p, s.candidates}, stream);
  launch_nms(s.nms, s.nms_memory, s.kept, count, stream);
  for_each("generate_proposals (output)", p.top_k.num_images * p.max_output,
           WriteProposal{s.candidates, p.top_k.num_chosen, p.max_output, s.kept, count, boxes, scores}, stream);
}

}  // namespace fastrcnn
