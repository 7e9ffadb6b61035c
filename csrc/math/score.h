// The order of scores: descending, NaN after all numbers (NMS); and of logits in a top-k, where NaN comes first.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/host_device.h"

namespace fastrcnn {

// Of descending_key: the largest one, and one that is larger than all and free for other use.
constexpr uint64_t kNanKey = uint64_t(0xFFF8) << 48;
constexpr uint64_t kAfterAllKeys = UINT64_MAX;

// For a score that is a float32 number, bits below this one are the same in all keys.
constexpr int kFirstFloatKeyBit = 29;

// Maps a score to an integer that grows as the score falls, so that sorting by it in ascending order sorts the scores.
HOST_DEVICE uint64_t descending_key(double score) {
  if (score != score) return kNanKey;
  if (score == 0.0) score = 0.0;  // -0 equals +0
  uint64_t bits;
  memcpy(&bits, &score, sizeof bits);
  const bool negative = bits >> 63;
  return negative ? bits : ~bits & ~(uint64_t(1) << 63);
}

// Of top_k_key: that of NaN, which torch.topk takes for the largest number.
constexpr int32_t kTopKNan = INT32_MAX;

// Maps a logit to an integer that grows with it, for the choice of the k largest.
HOST_DEVICE int32_t top_k_key(float logit) {
  const float value = logit + 0.0f;  // -0 becomes +0
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const int32_t key = bits < 0 ? bits ^ INT32_MAX : bits;  // negative numbers: larger magnitude, smaller key
  return value != value ? kTopKNan : key;
}

// The logit that has this key; NaN for kTopKNan.
HOST_DEVICE float logit_of(int32_t key) {
  const int32_t bits = key < 0 ? key ^ INT32_MAX : key;
  float logit;
  memcpy(&logit, &bits, sizeof logit);
  return logit;
}

}  // namespace fastrcnn
