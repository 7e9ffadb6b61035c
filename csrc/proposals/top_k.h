// The exact top-k of the logits of one image and level on the CPU, read where they lie.
//
// A level has hundreds of thousands of logits, of which about a thousand are wanted. So the logits are divided into
// some 4 k groups; at least k logits reach the k-th largest of the groups' maxima, which is therefore a lower bound of
// the k-th largest logit, and a close one. What is not below the bound, seldom much more than k, is sorted. That makes
// two passes over the logits at the speed of memory, and a sort of few.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>

#include "../common/radix_sort.h"
#include "../math/score.h"
#include "proposals.h"
#include "proposals_simd.h"

namespace fastrcnn {

// The logits of one image and level in the order of memory: three nested loops over anchors, rows and columns.
class LogitScan {
 public:
  static constexpr int64_t kBlock = 4096;  // logits looked at at once: a multiple of all sizes of chunks

  LogitScan(const ProposalLevel<FloatArray>& level, int64_t image)
      : logits_(level.objectness), first_(image * level.objectness_strides[0]), count_(level.size()) {
    const int64_t a = level.num_anchors, h = level.height, w = level.width;
    loops_[0] = {a, level.objectness_strides[1], 1};
    loops_[1] = {h, level.objectness_strides[2], w * a};
    loops_[2] = {w, level.objectness_strides[3], a};
    std::sort(loops_, loops_ + 3, [](const Loop& p, const Loop& q) {
      return std::pair(p.size == 1, p.stride) > std::pair(q.size == 1, q.stride);  // the largest stride outermost
    });
    int64_t stride = 1;
    for (int l = 2; l >= 0; --l) {
      dense_ = dense_ && (loops_[l].size == 1 || loops_[l].stride == stride);
      stride *= loops_[l].size;
    }
  }

  int64_t size() const { return count_; }

  // The logits [position, position + n) of the scan, n at most kBlock; `buffer` has room for as many.
  const float* read(int64_t position, int64_t n, float* buffer) const {
    if (dense_) return logits_.row(first_ + position, 1, n, buffer);
    for (int64_t done = 0; done < n;) {
      const Place p = place(position + done);
      const int64_t step = std::min(loops_[2].size - p.inner, n - done);
      const int64_t start = p.outer * loops_[0].stride + p.middle * loops_[1].stride + p.inner * loops_[2].stride;
      const float* row = logits_.row(first_ + start, loops_[2].stride, step, buffer + done);
      if (row != buffer + done) std::copy(row, row + step, buffer + done);
      done += step;
    }
    return buffer;
  }

  // The index of the anchor, in the order y, x, anchor.
  int64_t anchor_at(int64_t position) const {
    const Place p = place(position);
    return p.outer * loops_[0].anchor_stride + p.middle * loops_[1].anchor_stride + p.inner * loops_[2].anchor_stride;
  }

 private:
  struct Loop {
    int64_t size, stride, anchor_stride;
  };
  struct Place {
    int64_t outer, middle, inner;
  };

  Place place(int64_t position) const {  // divisions of 32 bits: twice as fast, and a level has fewer than 2^31 logits
    const auto at = static_cast<uint32_t>(position), columns = static_cast<uint32_t>(loops_[2].size);
    const uint32_t row = at / columns, rows = static_cast<uint32_t>(loops_[1].size);
    return {row / rows, row % rows, at % columns};
  }

  FloatArray logits_;
  int64_t first_, count_;
  Loop loops_[3];
  bool dense_ = true;  // one run of memory without gaps
};

// A logit and its anchor as a number whose ascending order is descending logits (NaN first), ties by anchor.
struct RankedAnchor {
  static uint64_t pack(float logit, int64_t anchor) {
    return static_cast<uint64_t>(~biased(top_k_key(logit))) << 32 | static_cast<uint64_t>(anchor);
  }
  static int64_t anchor(uint64_t packed) { return static_cast<int64_t>(packed & UINT32_MAX); }
  static float logit(uint64_t packed) {
    return logit_of(static_cast<int32_t>(~static_cast<uint32_t>(packed >> 32) ^ kSign));
  }

  static constexpr uint32_t kSign = uint32_t(1) << 31;
  static uint32_t biased(int32_t key) { return static_cast<uint32_t>(key) ^ kSign; }  // the same order, unsigned
};

// The k-th largest value, k from 1 to their number; NaN are the largest. By digits from the top: the digit of the k-th
// largest follows from how many values have each digit, and only those that share it are looked at again.
inline float kth_largest(const std::vector<float>& values, int64_t k) {
  constexpr uint32_t kDigit = 2047;  // 11 bits
  uint32_t prefix = 0, known = 0;
  for (const int shift : {21, 10, 0}) {
    std::vector<int64_t> counts(kDigit + 1, 0);
    for (const float value : values) {
      const uint32_t key = RankedAnchor::biased(top_k_key(value));
      if ((key & known) == prefix) ++counts[key >> shift & kDigit];
    }
    uint32_t digit = kDigit;
    for (; counts[digit] < k; --digit) k -= counts[digit];
    prefix |= digit << shift;
    known |= kDigit << shift;
  }
  return logit_of(static_cast<int32_t>(prefix ^ RankedAnchor::kSign));
}

// A number that at least k of the logits reach, and few others.
inline float lower_bound_of_top(const LogitScan& scan, int64_t k) {
  const int64_t n = scan.size();
  if (k >= n) return -INFINITY;
  constexpr int64_t kLargestGroup = LogitScan::kBlock / kGroupsPerChunk;
  const auto wanted = static_cast<uint64_t>(std::clamp(n / (4 * k), int64_t(1), kLargestGroup));
  const auto group = static_cast<int64_t>(std::bit_floor(wanted));
  const int64_t chunk = kGroupsPerChunk * group;
  std::vector<float> maxima(static_cast<size_t>((n + chunk - 1) / chunk * kGroupsPerChunk));
  float buffer[LogitScan::kBlock];
  for (int64_t first = 0; first < n; first += LogitScan::kBlock) {
    const int64_t count = std::min(LogitScan::kBlock, n - first);
    FASTRCNN_SIMD(group_maxima, scan.read(first, count, buffer), count, group, maxima.data() + first / group);
  }
  return kth_largest(maxima, k);
}

// The min(k, n) anchors of largest logit as RankedAnchor, sorted.
inline std::vector<uint64_t> top_anchors(const ProposalLevel<FloatArray>& level, int64_t image, int64_t k) {
  const LogitScan scan(level, image);
  k = std::min(k, scan.size());
  std::vector<uint64_t> candidates;
  if (k == 0) return candidates;
  const float bound = lower_bound_of_top(scan, k);
  float buffer[LogitScan::kBlock];
  int32_t places[LogitScan::kBlock];
  for (int64_t first = 0; first < scan.size(); first += LogitScan::kBlock) {
    const int64_t count = std::min(LogitScan::kBlock, scan.size() - first);
    const float* logits = scan.read(first, count, buffer);
    const int64_t found = FASTRCNN_SIMD(find_not_below, logits, count, bound, places);
    for (int64_t i = 0; i < found; ++i) {
      candidates.push_back(RankedAnchor::pack(logits[places[i]], scan.anchor_at(first + places[i])));
    }
  }
  radix_sort(candidates);
  candidates.resize(static_cast<size_t>(k));
  return candidates;
}

}  // namespace fastrcnn
