// The order of scores: descending, NaN after all numbers.
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

}  // namespace fastrcnn
