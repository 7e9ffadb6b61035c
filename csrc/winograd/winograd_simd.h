// The loops of Winograd's convolution on the CPU (winograd_simd.inl).
#pragma once

#include "../simd/level.h"
#include "winograd_params.h"

namespace fastrcnn {

// `to`: a panel of transformed weights, [kProducts, channels, kPanel], of which these channels are written.
FASTRCNN_DECLARE_SIMD(void transform_weights(const Conv3x3Params& p, int64_t panel, int64_t first_channel,
                                             int64_t last_channel, float* to);)
FASTRCNN_DECLARE_SIMD(void convolve_tiles(const Conv3x3Params& p, const Conv3x3Task& task,
                                          const Conv3x3Scratch& scratch);)

}  // namespace fastrcnn
