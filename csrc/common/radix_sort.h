// Sorting of unsigned integers in linear time.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace fastrcnn {

// Sorts ascending by the bits from `first_bit` on, a multiple of 8; what is equal in them keeps its order. Digit by
// digit, the least significant first; a digit that is the same in all keys costs nothing.
inline void radix_sort(std::vector<uint64_t>& keys, int first_bit) {
  std::array<std::array<uint32_t, 256>, 8> counts{};
  for (const uint64_t key : keys) {
    for (int digit = first_bit / 8; digit < 8; ++digit) ++counts[digit][key >> (8 * digit) & 255];
  }
  std::vector<uint64_t> sorted(keys.size());
  for (int digit = first_bit / 8; digit < 8; ++digit) {
    auto& place = counts[digit];
    if (keys.empty() || place[keys[0] >> (8 * digit) & 255] == keys.size()) continue;
    uint32_t start = 0;
    for (uint32_t& count : place) start += std::exchange(count, start);
    for (const uint64_t key : keys) sorted[place[key >> (8 * digit) & 255]++] = key;
    keys.swap(sorted);
  }
}

}  // namespace fastrcnn
