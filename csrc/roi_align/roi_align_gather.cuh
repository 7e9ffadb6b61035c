// The backward pass of RoIAlign without atomic additions: reproducible to the last bit.
//
// Work: a block owns a tile of 8 x 8 cells of one image and level, and as many channels as a warp holds at 16 bytes of
// sums per thread; a warp owns a row of cells, a thread its channels of the 8 cells, whose sums stay in registers. It
// reads only what its tile needs, and every cell is written once, in the type of the gradient, also where no RoI is.
//
// 1. Place kernel: which tiles each RoI may touch. A thread owns a RoI.
// 2. Gather kernel, for 1024 RoIs at a time: each thread asks of four of them whether they touch the tile, and those
//    that do are listed in ascending order. They are taken in batches of 8: each warp works out the weights of one RoI
//    for the 8 rows and 8 columns of cells, a lane per bin and axis, into shared memory, where all channels use them;
//    then every thread adds what the bins of the 8 RoIs give to its cells, one after the other.
// So the order of each sum is fixed: by RoI, and within it by bin (by blocks of 16 x 16 bins, if there are more). The
// tiles of coarse levels, which most RoIs touch, come first: what takes longest is not left to the end.
#pragma once

#include "../common/bin_share.cuh"
#include "../math/box.h"
#include "roi_align.cuh"

namespace fastrcnn {

template <typename T>
constexpr int kGatherBlocks = sizeof(T) == 4 ? 3 : 2;  // at least, per multiprocessor
constexpr int kTile = 8;                               // cells per side; also warps, and RoIs in a batch
constexpr int kGatherThreads = kTile * kWarpSize;
constexpr int kGatherEach = 4;                    // RoIs that a thread asks for
constexpr int kGatherBins = 16;                   // bins per axis whose weights are in shared memory at once
constexpr int kGatherAhead = 2;                   // bins whose gradients a thread asks for together
static_assert(2 * kGatherBins == kWarpSize);      // a lane per bin and axis
static_assert(kTile * kGatherEach <= kWarpSize);  // a warp adds up the counts of all warps

// --- 1: place --------------------------------------------------------------------------------------------------------

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

// Rows or columns of tiles [first, last).
struct TileRange {
  int first, last;

  __device__ bool contains(int tile) const { return tile >= first && tile < last; }
};

// Those whose cells the samples of an axis can touch; too many in doubtful cases.
template <typename T>
__device__ __forceinline__ TileRange tiles_touched(const RoiAxis<T>& axis, int bins) {
  const T end = axis.start + axis.bin * static_cast<T>(bins);
  const bool reversed = end < axis.start;
  // A sample reaches one cell further; one more cell, and more for huge coordinates, absorb rounding.
  const T slack = T(2) + T(1e-5) * (std::fabs(axis.start) + std::fabs(end));
  const T low = (reversed ? end : axis.start) - slack, high = (reversed ? axis.start : end) + slack;
  const T last_cell = static_cast<T>(axis.cells - 1);
  if (!(high >= T(0) && low <= last_cell)) return {0, 0};  // NaN, too
  return {static_cast<int>(low > T(0) ? low : T(0)) / kTile,
          static_cast<int>(high < last_cell ? high : last_cell) / kTile + 1};
}

struct TilesOfRoi {
  int level;  // -1: none
  int64_t image;
  TileRange y, x;
};

template <typename T>
struct PlaceOnTiles {
  RoiAlignParams<T> p;
  TilesOfRoi* tiles;

  __device__ void operator()(int64_t r) const {
    const RoiPlace<T> place = roi_place(p, r);
    tiles[r] = {place.image < 0 ? -1 : place.level, place.image, tiles_touched(place.y, p.pooled_height),
                tiles_touched(place.x, p.pooled_width)};
  }
};

// --- 2: gather -------------------------------------------------------------------------------------------------------

// The tile of a block.
struct Tile {
  int level, y, x;  // y, x: in tiles
  int64_t image;

  __device__ Tile(const TileTable& table, int64_t number) {
    level = 0;
    while (number >= table.first[level + 1]) ++level;
    number -= table.first[level];
    x = static_cast<int>(number % table.tiles_x[level]);
    y = static_cast<int>(number / table.tiles_x[level] % table.tiles_y[level]);
    image = number / table.tiles_x[level] / table.tiles_y[level];
  }

  __device__ bool touched_by(const TilesOfRoi& roi) const {
    return roi.level == level && roi.image == image && roi.y.contains(y) && roi.x.contains(x);
  }
};

// Lists, in ascending order, which of kGatherEach * kGatherThreads RoIs from `first` on touch the tile, as distances
// from `first`; returns how many. Called by the whole block; the list is complete on return.
__device__ __forceinline__ int list_rois(const Tile& tile, const TilesOfRoi* rois, int64_t first, int64_t num_rois,
                                         int* list) {
  __shared__ int counts[kWarpSize];  // [kGatherEach][warp]
  const int tid = static_cast<int>(threadIdx.x), warp = tid / kWarpSize, lane = tid % kWarpSize;
  unsigned touching[kGatherEach];  // of the warp's RoIs
  for (int e = 0; e < kGatherEach; ++e) {
    const int64_t r = first + e * kGatherThreads + tid;
    touching[e] = __ballot_sync(kFullWarp, r < num_rois && tile.touched_by(rois[r]));
  }
  if (lane == 0) {
    for (int e = 0; e < kGatherEach; ++e) counts[e * kTile + warp] = __popc(touching[e]);
  }
  __syncthreads();
  int through = lane < kTile * kGatherEach ? counts[lane] : 0;  // soon: of the warps up to and including this one
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const int other = __shfl_up_sync(kFullWarp, through, distance);
    if (lane >= distance) through += other;
  }
  for (int e = 0; e < kGatherEach; ++e) {
    const int before = __shfl_sync(kFullWarp, through, e * kTile + warp) - __popc(touching[e]);
    const unsigned below = touching[e] & ((1u << lane) - 1);
    if (touching[e] & (1u << lane)) list[before + __popc(below)] = e * kGatherThreads + tid;
  }
  __syncthreads();
  return __shfl_sync(kFullWarp, through, kWarpSize - 1);
}

// Bit i set: bin i, of bins that follow each other.
__device__ __forceinline__ BinRange range_of_bits(unsigned bits) {
  return bits == 0 ? BinRange{0, 0}
                   : BinRange{__ffs(static_cast<int>(bits)) - 1, kWarpSize - __clz(static_cast<int>(bits))};
}

// What up to kGatherBins rows and columns of bins of one RoI give to the rows and columns of cells of a tile.
template <typename T>
struct TileWeights {
  T y[kGatherBins][kTile], x[kGatherBins][kTile];
  BinRange rows[kTile];  // the rows of bins that give to each row of cells
  BinRange columns;      // the columns of bins that give to any column of cells
};

// For the bins from (first_row, first_column) on. Called by a whole warp; its first half takes rows, its second
// columns.
template <typename T>
__device__ __forceinline__ void fill_weights(const RoiAlignParams<T>& p, int64_t r, const Tile& tile, int first_row,
                                             int first_column, TileWeights<T>& result) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const bool along_y = lane < kGatherBins;
  const int bin = (along_y ? first_row : first_column) + lane % kGatherBins;
  const int first_cell = (along_y ? tile.y : tile.x) * kTile;
  T* weights = along_y ? result.y[lane % kGatherBins] : result.x[lane % kGatherBins];
  for (int i = 0; i < kTile; ++i) weights[i] = T(0);
  if (bin < (along_y ? p.pooled_height : p.pooled_width)) {
    for_each_cell(choose_axis(roi_place(p, r), along_y), bin, [&](int cell, T weight) {
      if (cell >= first_cell && cell < first_cell + kTile) weights[cell - first_cell] += weight;
    });
  }
  unsigned any = 0;
  for (int i = 0; i < kTile; ++i) {
    const unsigned giving = __ballot_sync(kFullWarp, weights[i] != T(0));
    any |= giving;
    if (lane == i) result.rows[i] = range_of_bits(giving & ((1u << kGatherBins) - 1));
  }
  if (lane == 0) result.columns = range_of_bits(any >> kGatherBins);
}

// grad: [R, pooled_height, pooled_width, C]; out: written completely. `vector` channels per thread; C is a multiple.
template <int vector, typename Feature, typename T>
__global__ void __launch_bounds__(kGatherThreads, kGatherBlocks<T>)
    roi_align_gather_kernel(const __grid_constant__ RoiAlignParams<T> p, const __grid_constant__ TileTable table,
                            const TilesOfRoi* __restrict__ rois, const Feature* __restrict__ grad,
                            const __grid_constant__ FeatureMaps<Feature> out) {
  constexpr int listed = kGatherEach * kGatherThreads;
  __shared__ int list[listed];
  __shared__ TileWeights<T> weights[kTile];

  const int64_t slices = (p.channels + kWarpSize * vector - 1) / (kWarpSize * vector);
  const Tile tile(table, table.first[p.num_levels] - 1 - blockIdx.x / slices);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t c = (blockIdx.x % slices * kWarpSize + lane) * vector;

  T sum[kTile][vector] = {};
  for (int64_t first = 0; first < p.num_rois; first += listed) {
    const int total = list_rois(tile, rois, first, p.num_rois, list);
    for (int batch = 0; batch < total; batch += kTile) {
      const int count = minimum(kTile, total - batch);
      for (int p0 = 0; p0 < p.pooled_height; p0 += kGatherBins) {
        for (int q0 = 0; q0 < p.pooled_width; q0 += kGatherBins) {
          if (warp < count) fill_weights(p, first + list[batch + warp], tile, p0, q0, weights[warp]);
          __syncthreads();
          for (int k = 0; k < count && c < p.channels; ++k) {
            const TileWeights<T>& roi = weights[k];
            const BinRange rows = roi.rows[warp], columns = roi.columns;
            for (int i = rows.first; i < rows.last; ++i) {
              const T y_weight = roi.y[i][warp];
              const int64_t row = (first + list[batch + k]) * p.pooled_height + p0 + i;
              const Feature* bins = grad + (row * p.pooled_width + q0) * p.channels + c;
#pragma unroll 1
              for (int j = columns.first; j < columns.last; j += kGatherAhead) {
                Pack<Feature, vector> ahead[kGatherAhead];
                for (int a = 0; a < kGatherAhead; ++a) {
                  if (j + a >= columns.last) break;
                  ahead[a] = *reinterpret_cast<const Pack<Feature, vector>*>(bins + (j + a) * p.channels);
                }
                for (int a = 0; a < kGatherAhead; ++a) {
                  if (j + a >= columns.last) break;
                  for (int x = 0; x < kTile; ++x) {
                    const T weight = y_weight * roi.x[j + a][x];
                    if (weight == T(0)) continue;  // a bin that gives nothing must not spread NaN or infinity
                    for (int v = 0; v < vector; ++v) {
                      sum[x][v] = std::fma(weight, to_sum(ahead[a].values[v]), sum[x][v]);
                    }
                  }
                }
              }
            }
          }
          __syncthreads();  // the weights and, at last, the list have been read
        }
      }
    }
  }
  const int y = tile.y * kTile + warp, x0 = tile.x * kTile;
  if (y >= p.heights[tile.level] || c >= p.channels) return;
  Feature* cells = image_map(out, p, tile.level, tile.image) +
                   (static_cast<int64_t>(y) * p.widths[tile.level] + x0) * p.channels + c;
  for (int x = 0; x < kTile; ++x) {
    if (x0 + x >= p.widths[tile.level]) break;
    Pack<Feature, vector> cell;
    for (int v = 0; v < vector; ++v) from_sum(sum[x][v], cell.values[v]);
    *reinterpret_cast<Pack<Feature, vector>*>(cells + x * p.channels) = cell;
  }
}

// --- all together ----------------------------------------------------------------------------------------------------

// Bytes of scratch memory.
template <typename T>
int64_t roi_align_gather_scratch(const RoiAlignParams<T>& p) {
  return p.num_rois * static_cast<int64_t>(sizeof(TilesOfRoi));
}

// Writes every number of out. All pointers are to device memory.
template <typename Feature, typename T>
void launch_roi_align_gather(const RoiAlignParams<T>& p, const Feature* grad, const FeatureMaps<Feature>& out,
                             void* scratch, cudaStream_t stream) {
  const TileTable table = tile_table(p);
  if (table.first[p.num_levels] == 0 || p.channels == 0) return;
  constexpr int vector = kPackSize<T>;
  bool packed = p.channels % vector == 0 && is_pack_aligned(grad);
  for (int l = 0; l < p.num_levels; ++l) packed = packed && is_pack_aligned(out.maps[l]);
  auto* rois = static_cast<TilesOfRoi*>(scratch);
  for_each("roi_align backward (place)", p.num_rois, PlaceOnTiles<T>{p, rois}, stream);
  launch("roi_align backward (gather)",
         packed ? &roi_align_gather_kernel<vector, Feature, T> : &roi_align_gather_kernel<1, Feature, T>,
         table.first[p.num_levels] * blocks_for(p.channels, kWarpSize * (packed ? vector : 1)), kGatherThreads, 0,
         stream, p, table, rois, grad, out);
}

}  // namespace fastrcnn
