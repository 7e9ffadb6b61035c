// The hot loops of the top-k on the CPU (proposals_simd.inl).
#pragma once

#include <cstdint>

#include "../math/box.h"
#include "../simd/level.h"

namespace fastrcnn {

constexpr int64_t kGroupsPerChunk = 64;

// group_maxima: divides the n values into chunks of kGroupsPerChunk * group_size and a chunk into groups whose members
//   lie kGroupsPerChunk apart, so that neighbours are in different groups; writes the maximum of each, NaN left out.
// find_not_below: writes the places of the values that are not less than the bound, NaN among them; returns how many.
FASTRCNN_DECLARE_SIMD(void group_maxima(const float* values, int64_t n, int64_t group_size, float* maxima);
                      int64_t find_not_below(const float* values, int64_t n, float bound, int32_t* places);)

}  // namespace fastrcnn
