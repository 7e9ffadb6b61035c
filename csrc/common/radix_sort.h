// Sorting on the CPU by an unsigned integer, in linear time.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace fastrcnn {

struct KeyedIndex {
  uint64_t key;
  int64_t index;
};

inline uint64_t key_of(const KeyedIndex& item) { return item.key; }
inline uint64_t key_of(uint64_t key) { return key; }

// Sorts KeyedIndex or uint64_t ascending by key; equal keys keep their order. Only the bits in which keys differ are
// looked at, 9 at a time, from the lowest up: each round counts how often each digit comes, and so knows where its
// items go.
template <typename Item>
void radix_sort(std::vector<Item>& items) {
  constexpr int digit_bits = 9, digits = 1 << digit_bits;
  constexpr size_t few = 100;  // comparisons are quicker than counting 512 digits
  if (items.size() <= few) {
    std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return key_of(a) < key_of(b); });
    return;
  }
  uint64_t set_somewhere = 0, set_everywhere = ~uint64_t(0);
  for (const Item& item : items) {
    set_somewhere |= key_of(item);
    set_everywhere &= key_of(item);
  }
  std::vector<Item> sorted(items.size());
  uint64_t differing = set_somewhere & ~set_everywhere;
  while (differing != 0) {
    const int shift = __builtin_ctzll(differing);
    const auto digit = [shift](const Item& item) { return key_of(item) >> shift & (digits - 1); };
    std::array<size_t, digits> place{};
    for (const Item& item : items) ++place[digit(item)];
    size_t start = 0;
    for (size_t& count : place) start += std::exchange(count, start);
    for (const Item& item : items) sorted[place[digit(item)]++] = item;
    items.swap(sorted);
    differing &= ~(uint64_t(digits - 1) << shift);
  }
}

}  // namespace fastrcnn
