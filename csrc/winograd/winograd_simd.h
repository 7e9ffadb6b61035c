// The loops of Winograd's convolution on the CPU (winograd_simd.inl).
#pragma once

#include "../simd/level.h"
#include "winograd_params.h"

namespace fastrcnn {

FASTRCNN_DECLARE_SIMD(void convolve_tiles(const Conv3x3Params& p, const Conv3x3Task& task,
                                          const Conv3x3Scratch& scratch);)

}  // namespace fastrcnn
