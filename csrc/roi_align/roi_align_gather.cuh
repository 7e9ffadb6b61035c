// The backward pass of RoIAlign without atomic additions: reproducible to the last bit.
//
// Work: a block owns a tile of 8 x 8 cells of one image and level, and 32 channels; a warp owns a row of cells, a
// thread one channel of its 8 cells, whose sums stay in registers. The block takes the RoIs in chunks: each thread asks
// of one RoI whether it can touch the tile, and those that do are then visited in ascending order. Of such a RoI, one
// thread per row or column of bins works out its weights for the 8 rows or columns of cells (shared memory, used by all
// channels); then every thread adds what the bins give to its cells, in the order of the bins (in blocks of 16 x 16, if
// there are more). So the order of each sum is fixed. Every cell is written once, also where no RoI is.
#pragma once

#include "../common/block.cuh"
#include "roi_align.cuh"

namespace fastrcnn {

constexpr int kTile = 8;           // cells per side
constexpr int kTileChannels = 32;  // one warp
constexpr int kBinChunk = 16;      // bins per axis whose weights are in shared memory at once

// Blocks per multiprocessor, at least: as many as leave each thread the registers it needs.
template <typename T>
constexpr int kTileBlocks = sizeof(T) == 8 ? 2 : 4;

// The tiles of all levels: those of level l are numbered first[l] .. first[l + 1], image by image, row by row.
struct TileTable {
  int64_t first[kMaxLevels + 1];
  int tiles_y[kMaxLevels], tiles_x[kMaxLevels];
};

template <typename T>
TileTable tile_table(const RoiAlignParams<T>& p) {
  TileTable table{};
  for (int l = 0; l < p.num_levels; ++l) {
    table.tiles_y[l] = (p.heights[l] + kTile - 1) / kTile;
    table.tiles_x[l] = (p.widths[l] + kTile - 1) / kTile;
    table.first[l + 1] = table.first[l] + p.num_images * table.tiles_y[l] * table.tiles_x[l];
  }
  return table;
}

// Whether samples of the axis can touch the cells [first, first + kTile). Says yes in doubtful cases.
template <typename T>
__device__ __forceinline__ bool may_touch(const RoiAxis<T>& axis, int bins, int first) {
  const T end = axis.start + axis.bin * static_cast<T>(bins);
  const bool reversed = end < axis.start;
  const T low = reversed ? end : axis.start, high = reversed ? axis.start : end;
  // A sample reaches one cell further; one more cell, and more for huge coordinates, absorb rounding.
  const T slack = T(2) + T(1e-5) * (std::fabs(low) + std::fabs(high));
  return high + slack >= static_cast<T>(first) && low - slack <= static_cast<T>(first + kTile - 1);
}

template <typename Feature, typename T>
__global__ void __launch_bounds__(kTile* kTileChannels, kTileBlocks<T>)
    roi_align_gather_kernel(const __grid_constant__ RoiAlignParams<T> p, const __grid_constant__ TileTable table,
                            const Feature* __restrict__ grad, const __grid_constant__ FeatureMaps<T> sums) {
  constexpr int threads = kTile * kTileChannels;
  __shared__ int64_t chosen[threads];  // RoIs that may touch the tile
  __shared__ T y_weights[kBinChunk][kTile], x_weights[kBinChunk][kTile];
  __shared__ bool y_any[kBinChunk], x_any[kBinChunk];

  const int64_t slices = (p.channels + kTileChannels - 1) / kTileChannels;
  int64_t tile = blockIdx.x / slices;
  int level = 0;
  while (tile >= table.first[level + 1]) ++level;
  tile -= table.first[level];
  const int x0 = static_cast<int>(tile % table.tiles_x[level]) * kTile;
  const int y0 = static_cast<int>(tile / table.tiles_x[level] % table.tiles_y[level]) * kTile;
  const int64_t image = tile / table.tiles_x[level] / table.tiles_y[level];
  const int warp = threadIdx.x / kTileChannels;
  const int64_t c = blockIdx.x % slices * kTileChannels + threadIdx.x % kTileChannels;

  T sum[kTile];
  for (int x = 0; x < kTile; ++x) sum[x] = T(0);
  for (int64_t chunk = 0; chunk < p.num_rois; chunk += threads) {
    const int64_t candidate = chunk + threadIdx.x;
    bool touches = false;
    if (candidate < p.num_rois) {
      const RoiPlace<T> place = roi_place(p, candidate);
      touches = place.image == image && place.level == level && may_touch(place.y, p.pooled_height, y0) &&
                may_touch(place.x, p.pooled_width, x0);
    }
    const BlockRank place_in_list = block_rank<threads>(touches);
    if (touches) chosen[place_in_list.rank] = candidate;
    __syncthreads();
    for (int k = 0; k < place_in_list.total; ++k) {
      const int64_t r = chosen[k];
      for (int p0 = 0; p0 < p.pooled_height; p0 += kBinChunk) {
        for (int q0 = 0; q0 < p.pooled_width; q0 += kBinChunk) {
          const int rows = min(kBinChunk, p.pooled_height - p0), columns = min(kBinChunk, p.pooled_width - q0);
          if (threadIdx.x < 2 * kBinChunk) {
            const bool along_y = threadIdx.x < kBinChunk;
            const int bin = threadIdx.x % kBinChunk, first = along_y ? y0 : x0;
            T* weights = along_y ? y_weights[bin] : x_weights[bin];
            bool any = false;
            for (int i = 0; i < kTile; ++i) weights[i] = T(0);
            if (bin < (along_y ? rows : columns)) {
              const RoiAxis<T> axis = choose_axis(roi_place(p, r), along_y);
              for_each_cell(axis, (along_y ? p0 : q0) + bin, [&](int cell, T weight) {
                if (cell < first || cell >= first + kTile) return;
                weights[cell - first] += weight;
                any = true;
              });
            }
            (along_y ? y_any : x_any)[bin] = any;
          }
          __syncthreads();
          for (int i = 0; i < rows && c < p.channels; ++i) {
            const T y_weight = y_weights[i][warp];
            if (!y_any[i] || y_weight == T(0)) continue;
            for (int j = 0; j < columns; ++j) {
              if (!x_any[j]) continue;
              const int64_t bin = (r * p.pooled_height + p0 + i) * p.pooled_width + q0 + j;
              const T value = to_sum(grad[bin * p.channels + c]);
              // A bin that gives nothing to a cell must not spread NaN or infinity to it.
              for (int x = 0; x < kTile; ++x) {
                if (x_weights[j][x] != T(0)) sum[x] += y_weight * x_weights[j][x] * value;
              }
            }
          }
          __syncthreads();
        }
      }
    }
  }
  const int y = y0 + warp;
  if (y >= p.heights[level] || c >= p.channels) return;
  T* map = image_map(sums, p, level, image);
  for (int x = 0; x < kTile && x0 + x < p.widths[level]; ++x) {
    map[(static_cast<int64_t>(y) * p.widths[level] + x0 + x) * p.channels + c] = sum[x];
  }
}

// Writes every number of sums. All pointers are to device memory.
template <typename Feature, typename T>
void launch_roi_align_gather(const RoiAlignParams<T>& p, const Feature* grad, const FeatureMaps<T>& sums,
                             cudaStream_t stream) {
  const TileTable table = tile_table(p);
  const int64_t slices = blocks_for(p.channels, kTileChannels);
  const int64_t blocks = table.first[p.num_levels] * slices;
  if (blocks == 0) return;
  launch("roi_align backward (deterministic)", &roi_align_gather_kernel<Feature, T>, blocks, kTile * kTileChannels, 0,
         stream, p, table, grad, sums);
}

}  // namespace fastrcnn
