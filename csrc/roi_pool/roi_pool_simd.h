// The hot loop of RoIPool on the CPU (roi_pool_simd.inl). In channels-last memory a cell is C consecutive features.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../simd/level.h"
#include "roi_pool_params.h"

namespace fastrcnn {

// One bin: map [height, width, C]; out, argmax [C].
#define FASTRCNN_ROI_POOL_KERNELS(Feature)                                                                   \
  void max_of_cells(CellRange y, CellRange x, const Feature* map, int width, int64_t channels, Feature* out, \
                    int32_t* argmax);

FASTRCNN_DECLARE_SIMD(FASTRCNN_ROI_POOL_KERNELS(float) FASTRCNN_ROI_POOL_KERNELS(double)
                          FASTRCNN_ROI_POOL_KERNELS(torch::headeronly::Half)
                              FASTRCNN_ROI_POOL_KERNELS(torch::headeronly::BFloat16))

#undef FASTRCNN_ROI_POOL_KERNELS

}  // namespace fastrcnn
