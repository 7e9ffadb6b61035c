// Winograd's convolution on the CPU, channels-last (winograd_simd.inl).
//
// A task is a block of tiles and a range of output channels; threads take one after the other. Its transformed inputs
// and products lie in scratch that belongs to the thread and fits into its caches, so that only x, the weights and the
// result pass through memory. No two tasks write one number, and no sum depends on how the work is divided.
#include "winograd.h"

#include <algorithm>
#include <array>

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
// Larger results would not stay in the caches until they are read.
constexpr int64_t kPastCachesBytes = 32 << 20;

// Row i of G: (1, x, x^2) / product of (x - x') over the other points x'; for infinity (0, 0, 1).
std::array<std::array<double, 3>, kPatch> weight_transform() {
  const std::array<double, kPatch - 1> points = {0, kPointA, -kPointA, kPointB, -kPointB};
  std::array<std::array<double, 3>, kPatch> rows = {};
  for (size_t i = 0; i < points.size(); ++i) {
    double product = 1;
    for (size_t j = 0; j < points.size(); ++j) product *= i == j ? 1 : points[i] - points[j];
    rows[i] = {1 / product, points[i] / product, points[i] * points[i] / product};
  }
  rows[kPatch - 1] = {0, 0, 1};
  return rows;
}

// G weight G^T of one [3, 3]; consecutive ones of the 36 results are `stride` apart.
void transform_weight(const float* weight, float* to, int64_t stride) {
  static const auto g = weight_transform();
  for (int i = 0; i < kPatch; ++i) {
    double half[3];  // row i of G weight
    for (int x = 0; x < 3; ++x) half[x] = g[i][0] * weight[x] + g[i][1] * weight[3 + x] + g[i][2] * weight[6 + x];
    for (int j = 0; j < kPatch; ++j) {
      const double value = half[0] * g[j][0] + half[1] * g[j][1] + half[2] * g[j][2];
      to[(i * kPatch + j) * stride] = static_cast<float>(value);
    }
  }
}

Tensor winograd_weights_cpu(Tensor weight) {
  check_weight(weight);
  weight = torch::stable::contiguous(weight);
  const int64_t out_channels = weight.size(0), channels = weight.size(1), panels = panels_of(out_channels);
  Tensor out = new_tensor(weight, {panels, kProducts, channels, kPanel}, ScalarType::Float);
  torch::stable::zero_(out);
  const float* from = weight.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, panels, 1, [&](int64_t first, int64_t last) {
    for (int64_t o = first * kPanel; o < std::min(last * kPanel, out_channels); ++o) {
      for (int64_t c = 0; c < channels; ++c) {
        transform_weight(from + (o * channels + c) * 9,
                         to + (o / kPanel * kProducts * channels + c) * kPanel + o % kPanel, channels * kPanel);
      }
    }
  });
  return out;
}

// How the work is divided: blocks of tiles, and ranges of pairs of panels.
struct Division {
  int64_t tiles, pairs, blocks, ranges;

  int64_t tasks() const { return blocks * ranges; }
  int64_t most_tiles() const { return (tiles + blocks - 1) / blocks; }
  Conv3x3Task task(int64_t i) const {
    const int64_t block = i / ranges, range = i % ranges;
    return {block * tiles / blocks, (block + 1) * tiles / blocks, range * pairs / ranges, (range + 1) * pairs / ranges};
  }
};

// Ranges repeat the transform of the inputs, so there are only as many as it takes to occupy the threads evenly.
Division divide(const Conv3x3Params& p, int64_t threads) {
  Division division{p.num_images * p.tile_rows * p.tile_columns, (panels_of(p.out_channels) + 1) / 2, 1, 1};
  const int64_t tile_bytes = kProducts * panels_of(p.channels) * kPanel * static_cast<int64_t>(sizeof(float));
  const int64_t most = std::max(kFewestTiles, kInputsBytes / std::max<int64_t>(tile_bytes, 1));
  division.blocks = (division.tiles + most - 1) / most;
  while (division.tasks() % threads != 0 && division.tasks() < 8 * threads && division.ranges < division.pairs) {
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

Tensor conv3x3_cpu(Tensor x, Tensor weights, std::optional<Tensor> bias, int64_t out_channels, bool relu) {
  simd_level();  // a wrong FASTRCNN_SIMD is reported here and not from within a thread
  check_conv3x3(x, weights, bias, out_channels);
  x = to_channels_last(x);
  weights = torch::stable::contiguous(weights);
  bias = contiguous(bias);
  Tensor out = channels_last_tensor(x, {x.size(0), out_channels, x.size(2), x.size(3)}, ScalarType::Float);
  if (out.numel() == 0) return out;
  const int64_t out_bytes = out.numel() * static_cast<int64_t>(sizeof(float));
  const bool aligned = out_channels % kPanel == 0 && reinterpret_cast<uintptr_t>(out.data_ptr()) % 64 == 0;
  const Conv3x3Params p{x.const_data_ptr<float>(),
                        weights.const_data_ptr<float>(),
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
  const Division division = divide(p, torch::stable::get_num_threads());
  Conv3x3Scratch scratch;
  const int64_t bytes = static_cast<int64_t>(divide_scratch(p, division.most_tiles(), nullptr, scratch));
  const int64_t threads = std::min<int64_t>(division.tasks(), torch::stable::get_num_threads());
  Tensor memory = new_tensor(x, {threads * bytes}, ScalarType::Byte);
  map_huge_pages(memory);
  char* const base = static_cast<char*>(memory.data_ptr());
  for_each_task_with_worker(division.tasks(), [&](int64_t worker, int64_t i) {
    Conv3x3Scratch own;
    divide_scratch(p, division.most_tiles(), base + worker * bytes, own);
    FASTRCNN_SIMD(convolve_tiles, p, division.task(i), own);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrcnn, CPU, m) {
  m.impl("winograd_weights", TORCH_BOX(&winograd_weights_cpu));
  m.impl("conv3x3", TORCH_BOX(&conv3x3_cpu));
}

}  // namespace fastrcnn
