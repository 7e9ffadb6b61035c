// Sorting on the CPU by an integer, for the thousands of scores and class names that NMS puts in order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fastrcnn {

struct KeyedIndex {
  uint64_t key;
  int64_t index;
};

// Ascending by key; equal keys keep their order. Only the bits in which keys differ are looked at, 9 at a time, from
// the lowest up: each round counts how often each digit comes, and so knows where its items go.
inline void radix_sort(std::vector<KeyedIndex>& items) {
  constexpr int kDigitBits = 9, kDigits = 1 << kDigitBits;
  constexpr size_t kFew = 100;  // comparisons are quicker than counting 512 digits
  if (items.size() <= kFew) {
    std::stable_sort(items.begin(), items.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
    return;
  }
  uint64_t set_somewhere = 0, set_everywhere = ~uint64_t(0);
  for (const KeyedIndex& item : items) {
    set_somewhere |= item.key;
    set_everywhere &= item.key;
  }
  std::vector<KeyedIndex> sorted(items.size());
  uint64_t differing = set_somewhere & ~set_everywhere;
  while (differing != 0) {
    const int shift = __builtin_ctzll(differing);
    const auto digit = [shift](const KeyedIndex& item) { return (item.key >> shift) & (kDigits - 1); };
    size_t place[kDigits] = {};
    for (const KeyedIndex& item : items) ++place[digit(item)];
    size_t before = 0;
    for (size_t& next : place) {
      const size_t count = next;
      next = before;
      before += count;
    }
    for (const KeyedIndex& item : items) sorted[place[digit(item)]++] = item;
    items.swap(sorted);
    differing &= ~(uint64_t(kDigits - 1) << shift);
  }
}

}  // namespace fastrcnn
