// 16-bit numbers as float32 (widen.inl).
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "level.h"

namespace fastrcnn {

FASTRCNN_DECLARE_SIMD(void widen(const torch::headeronly::BFloat16* from, int64_t n, float* to);
                      void widen(const torch::headeronly::Half* from, int64_t n, float* to);)

}  // namespace fastrcnn
