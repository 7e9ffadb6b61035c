// Winograd's convolution on the CPU, channels-last (winograd_simd.inl).
//
// Weights are transformed anew in every call, some output channels after the other: that takes a few hundredths of the
// whole, and to keep them would take four times the model's memory. A task is a block of tiles and a range of output
// channels; threads take one after the other. Its transformed inputs and products lie in scratch that belongs to the
// thread and fits into its caches, so that only x, the weights and the result pass through memory. No two tasks write
// one number, and no sum depends on how the work is divided.
#include "winograd.h"

#include <algorithm>

#include "../common/huge_pages.h"
#include "../common/scratch.h"
#include "../common/tasks.h"
#include "winograd_simd.h"

namespace fastrcnn {
namespace {

// Transformed inputs of a task: they are read once per pair of panels, from the second-level cache if they fit.
constexpr int64_t kInputsBytes = 512 << 10;
// But at least so many tiles: a task reads all weights of its range, and does one multiply-add per tile with each.
constexpr int64_t kFewestTiles = 28;
// Transformed weights that exist at a time: they are read once per task, from the third-level cache if they fit.
constexpr int64_t kWeightsBytes = 16 << 20;
// Input channels whose weights a thread transforms at a time.
constexpr int64_t kChannelsAtATime = 64;
// Larger results would not stay in the caches until they are read.
constexpr int64_t kPastCachesBytes = 32 << 20;

// How the tiles, and the panels of output channels whose weights are there, are divided into tasks: blocks of tiles,
// and ranges of pairs of panels (the last one may be half a pair).
struct Division {
  int64_t tiles, panels, blocks, ranges;

  int64_t tasks() const { return blocks * ranges; }
  int64_t most_tiles() const { return (tiles + blocks - 1) / blocks; }
  int64_t first_panel(int64_t range) const { return std::min(range * ((panels + 1) / 2) / ranges * 2, panels); }
  Conv3x3Task task(int64_t i, int64_t first, const float* weights, int64_t channels) const {
    const int64_t block = i / ranges, begin = first_panel(i % ranges), end = first_panel(i % ranges + 1);
    return {block * tiles / blocks, (block + 1) * tiles / blocks, first + begin, first + end,
            weights + begin * panel_size(channels)};
  }
};

// Ranges repeat the transform of the inputs, so there are only as many as it takes to occupy the threads evenly.
Division divide(const Conv3x3Params& p, int64_t panels, int64_t threads) {
  Division division{p.num_images * p.tile_rows * p.tile_columns, panels, 1, 1};
  const int64_t tile_bytes = kProducts * panels_of(p.channels) * kPanel * static_cast<int64_t>(sizeof(float));
  const int64_t most = std::max(kFewestTiles, kInputsBytes / std::max<int64_t>(tile_bytes, 1));
  division.blocks = (division.tiles + most - 1) / most;
  while (division.tasks() % threads != 0 && division.tasks() < 8 * threads && division.ranges < (panels + 1) / 2) {
    ++division.ranges;
  }
  return division;
}

size_t divide_scratch(const Conv3x3Params& p, int64_t tiles, void* memory, Conv3x3Scratch& scratch) {
  ScratchMemory pieces(memory);
  pieces.take(scratch.zeros, panels_of(p.channels) * kPanel);
  pieces.take(scratch.inputs, kProducts * inputs_stride(tiles, p.channels));
  pieces.take(scratch.products, kProducts * products_stride(tiles));
  return pieces.bytes();
}

// The transformed weights of `panels` panels from `first` on.
void transform_panels(const Conv3x3Params& p, int64_t first, int64_t panels, float* to) {
  const int64_t parts = (p.channels + kChannelsAtATime - 1) / kChannelsAtATime;
  for_each_task(panels * parts, [&](int64_t i) {
    const int64_t panel = i / parts, channel = i % parts * kChannelsAtATime;
    FASTRCNN_SIMD(transform_weights, p, first + panel, channel, std::min(channel + kChannelsAtATime, p.channels),
                  to + panel * panel_size(p.channels));
  });
}

Tensor conv3x3_cpu(Tensor x, Tensor weight, std::optional<Tensor> bias, bool relu) {
  simd_level();  // a wrong FASTRCNN_SIMD is reported here and not from within a thread
  check_conv3x3(x, weight, bias);
  x = to_channels_last(x);
  weight = dense(weight);
  bias = contiguous(bias);
  const int64_t out_channels = weight.size(0);
  Tensor out = channels_last_tensor(x, {x.size(0), out_channels, x.size(2), x.size(3)}, ScalarType::Float);
  if (out.numel() == 0) return out;
  const int64_t out_bytes = out.numel() * static_cast<int64_t>(sizeof(float));
  const bool aligned = out_channels % kPanel == 0 && reinterpret_cast<uintptr_t>(out.data_ptr()) % 64 == 0;
  const Conv3x3Params p{x.const_data_ptr<float>(),
                        weight.const_data_ptr<float>(),
                        bias ? bias->const_data_ptr<float>() : nullptr,
                        out.mutable_data_ptr<float>(),
                        x.size(0),
                        x.size(2),
                        x.size(3),
                        x.size(1),
                        out_channels,
                        (x.size(2) + kTile - 1) / kTile,
                        (x.size(3) + kTile - 1) / kTile,
                        relu,
                        aligned && out_bytes >= kPastCachesBytes};
  map_huge_pages(out);

  const int64_t all = panels_of(out_channels), threads = torch::stable::get_num_threads();
  const int64_t panel_bytes = std::max<int64_t>(panel_size(p.channels) * static_cast<int64_t>(sizeof(float)), 1);
  const int64_t most_panels = std::min(all, std::max<int64_t>(kWeightsBytes / panel_bytes / 2 * 2, 2));
  const Division most = divide(p, most_panels, threads);
  Conv3x3Scratch scratch;
  const int64_t bytes = static_cast<int64_t>(divide_scratch(p, most.most_tiles(), nullptr, scratch));
  Tensor memory = new_tensor(x, {threads * bytes}, ScalarType::Byte);
  map_huge_pages(memory);
  char* const base = static_cast<char*>(memory.data_ptr());
  Tensor transformed = new_tensor(x, {most_panels * panel_size(p.channels)}, ScalarType::Float);
  map_huge_pages(transformed);
  float* const weights = transformed.mutable_data_ptr<float>();

  for (int64_t first = 0; first < all; first += most_panels) {
    const int64_t panels = std::min(most_panels, all - first);
    transform_panels(p, first, panels, weights);
    const Division division = divide(p, panels, threads);
    for_each_task_with_worker(division.tasks(), [&](int64_t worker, int64_t i) {
      Conv3x3Scratch own;
      divide_scratch(p, division.most_tiles(), base + worker * bytes, own);
      FASTRCNN_SIMD(convolve_tiles, p, division.task(i, first, weights, p.channels), own);
    });
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CPU, m) { m.impl("conv3x3", TORCH_BOX(&conv3x3_cpu)); }

}  // namespace fastrcnn
