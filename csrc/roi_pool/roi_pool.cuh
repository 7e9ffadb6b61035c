// RoIPool on CUDA. Everything is channels-last, and consecutive threads own consecutive channels, so that a warp reads
// and writes consecutive memory.
//
// Forward: a block owns one row of bins of one RoI. The RoI's place is worked out once per block; then a thread owns 16
// bytes of channels of one bin after the other, whose maxima stay in registers. It walks over the cells in the order of
// the definition, and asks for several cells of a row before it looks at the first.
// Backward: a block owns one row of bins of one RoI, too, and a thread one channel of its bins, whose gradients it adds
// to the cells that the maxima are from. Neighbouring channels often share a cell: one channel per thread puts the
// additions of a warp into consecutive memory. Bins share cells, and atomic additions come in any order, so the last
// bits change from run to run. The deterministic form turns it round: a block owns one cell, which its threads share
// out by channels; it lists the RoIs that reach the cell, in ascending order, and the bins of each that hold it, and
// each thread adds up those whose maximum is from there. Every cell is written once.
#pragma once

#include "../common/bin_share.cuh"
#include "../common/block.cuh"
#include "../common/pack.cuh"
#include "roi_pool_params.h"

namespace fastrcnn {

constexpr int kRoiPoolThreads = 256;
template <int vector>
constexpr int kRoiPoolBlocks = vector < 8 ? 4 : 3;  // at least, per multiprocessor: more would spill registers
constexpr int kCellsAhead = 2;                      // that a thread asks for together

// The row of bins that a block owns, and the first of its bins in [R, pooled_height, pooled_width].
template <typename T>
struct RowOfBins {
  int64_t roi, first_bin;
  int row;

  __device__ explicit RowOfBins(const RoiPoolParams<T>& p) {
    roi = blockIdx.x / static_cast<unsigned>(p.pooled_height);
    row = static_cast<int>(blockIdx.x % static_cast<unsigned>(p.pooled_height));
    first_bin = static_cast<int64_t>(blockIdx.x) * p.pooled_width;
  }
};

// features: [N, height, width, C]; out, argmax: [R, pooled_height, pooled_width, C]. `vector` channels per thread; C is
// a multiple of it.
template <int vector, typename Feature, typename T>
__global__ void __launch_bounds__(kRoiPoolThreads, kRoiPoolBlocks<vector>)
    roi_pool_kernel(RoiPoolParams<T> p, const Feature* __restrict__ features, Feature* __restrict__ out,
                    int32_t* __restrict__ argmax) {
  __shared__ PoolPlace<T> place;
  const RowOfBins<T> bins(p);
  if (threadIdx.x == 0) place = pool_place(p, bins.roi);
  __syncthreads();
  const CellRange y = bin_cells(place.y, bins.row);  // of padding: no cells
  const Feature* map = features + (place.image < 0 ? 0 : place.image) * p.height * p.width * p.channels;
  const BinShare share(p.channels / vector, p.pooled_width);
#pragma unroll 1
  for (int b = share.first_bin; b < p.pooled_width; b += share.bin_stride) {
    const CellRange x = bin_cells(place.x, b);
    const T start = y.first < y.last && x.first < x.last ? lowest_feature<T>() : T(0);
    for (int64_t c = static_cast<int64_t>(share.lane) * vector; c < p.channels; c += share.stride * vector) {
      T largest[vector];
      Pack<int32_t, vector> where;
      for (int v = 0; v < vector; ++v) largest[v] = start, where.values[v] = -1;
      const Feature* first_cell = map + static_cast<int64_t>(y.first * p.width + x.first) * p.channels + c;
#pragma unroll 1
      for (int cell_y = y.first; cell_y < y.last; ++cell_y, first_cell += p.width * p.channels) {
        const Feature* next = first_cell;
#pragma unroll 1
        for (int cell_x = x.first; cell_x < x.last; cell_x += kCellsAhead, next += kCellsAhead * p.channels) {
          Pack<Feature, vector> cells[kCellsAhead];
          for (int k = 0; k < kCellsAhead; ++k) {
            if (cell_x + k < x.last) cells[k] = *reinterpret_cast<const Pack<Feature, vector>*>(next + k * p.channels);
          }
          for (int k = 0; k < kCellsAhead; ++k) {
            if (cell_x + k >= x.last) break;
            for (int v = 0; v < vector; ++v) {
              const T value = to_sum(cells[k].values[v]);
              if (value > largest[v]) largest[v] = value, where.values[v] = cell_y * p.width + cell_x + k;
            }
          }
        }
      }
      Pack<Feature, vector> bin;
      for (int v = 0; v < vector; ++v) from_sum(largest[v], bin.values[v]);
      const int64_t i = (bins.first_bin + b) * p.channels + c;
      *reinterpret_cast<Pack<Feature, vector>*>(out + i) = bin;
      *reinterpret_cast<Pack<int32_t, vector>*>(argmax + i) = where;
    }
  }
}

// grad, argmax: [R, pooled_height, pooled_width, C]; sums: [N, height, width, C], zero on entry.
template <typename Feature, typename T>
__global__ void __launch_bounds__(kRoiPoolThreads)
    roi_pool_scatter_kernel(RoiPoolParams<T> p, const Feature* __restrict__ grad, const int32_t* __restrict__ argmax,
                            T* __restrict__ sums) {
  const RowOfBins<T> bins(p);
  const int64_t image = pool_place(p, bins.roi).image;
  if (image < 0) return;
  T* map = sums + image * p.height * p.width * p.channels;
  const BinShare share(p.channels, p.pooled_width);
  for (int64_t c = share.lane; c < p.channels; c += share.stride) {
#pragma unroll 8
    for (int b = share.first_bin; b < p.pooled_width; b += share.bin_stride) {
      const int64_t i = (bins.first_bin + b) * p.channels + c;
      const int32_t where = argmax[i];
      const T value = to_sum(grad[i]);
      if (where >= 0) atomicAdd(map + where * p.channels + c, value);
    }
  }
}

constexpr int kPoolGatherThreads = 128;
template <typename T>
constexpr int kPoolGatherBlocks = sizeof(T) == 8 ? 6 : 8;  // at least, per multiprocessor

// The bins along an axis that hold a cell.
template <typename T>
__device__ __forceinline__ BinRange bins_of_cell(const PoolAxis<T>& axis, int bins, int cell) {
  if (bin_cells(axis, 0).first > cell || bin_cells(axis, bins - 1).last <= cell) return {0, 0};
  BinRange range{0, 0};
  while (bin_cells(axis, range.first).last <= cell) ++range.first;
  range.last = range.first;
  while (range.last < bins && bin_cells(axis, range.last).first <= cell) ++range.last;
  return range;
}

// A RoI, and its bins that hold the cell of the block.
struct BinsAtCell {
  int64_t roi;
  BinRange rows, columns;
};

// sums: [N, height, width, C], written completely.
template <typename Feature, typename T>
__global__ void __launch_bounds__(kPoolGatherThreads, kPoolGatherBlocks<T>)
    roi_pool_gather_kernel(RoiPoolParams<T> p, const Feature* __restrict__ grad, const int32_t* __restrict__ argmax,
                           T* __restrict__ sums) {
  __shared__ BinsAtCell chosen[kPoolGatherThreads];
  const int64_t slices = (p.channels + kPoolGatherThreads - 1) / kPoolGatherThreads;
  const int64_t cell = blockIdx.x / slices, c = blockIdx.x % slices * kPoolGatherThreads + threadIdx.x;
  const int64_t image = cell / p.width / p.height;
  const int32_t index = static_cast<int32_t>(cell % (static_cast<int64_t>(p.height) * p.width));
  T sum = T(0);
  for (int64_t first = 0; first < p.num_rois; first += kPoolGatherThreads) {
    BinsAtCell mine{first + threadIdx.x, {0, 0}, {0, 0}};
    if (mine.roi < p.num_rois) {
      const PoolPlace<T> place = pool_place(p, mine.roi);
      if (place.image == image) {
        mine.rows = bins_of_cell(place.y, p.pooled_height, index / p.width);
        mine.columns = bins_of_cell(place.x, p.pooled_width, index % p.width);
      }
    }
    const bool reaches = mine.rows.first < mine.rows.last && mine.columns.first < mine.columns.last;
    const BlockRank rank = block_rank<kPoolGatherThreads>(reaches);
    if (reaches) chosen[rank.rank] = mine;
    __syncthreads();
    for (int k = 0; k < rank.total && c < p.channels; ++k) {
      const BinsAtCell bins = chosen[k];
      for (int row = bins.rows.first; row < bins.rows.last; ++row) {
        for (int column = bins.columns.first; column < bins.columns.last; ++column) {
          const int64_t i = ((bins.roi * p.pooled_height + row) * p.pooled_width + column) * p.channels + c;
          if (argmax[i] == index) sum += to_sum(grad[i]);
        }
      }
    }
    __syncthreads();  // the list has been read
  }
  if (c < p.channels) sums[cell * p.channels + c] = sum;
}

// All pointers are to device memory. The results are written completely.
template <typename Feature, typename T>
void launch_roi_pool(const RoiPoolParams<T>& p, const Feature* features, Feature* out, int32_t* argmax,
                     cudaStream_t stream) {
  if (p.num_rois == 0 || p.channels == 0) return;
  constexpr int vector = kPackSize<Feature>;
  const bool packed = p.channels % vector == 0 && is_pack_aligned(features) && is_pack_aligned(out) &&
                      reinterpret_cast<uintptr_t>(argmax) % sizeof(Pack<int32_t, vector>) == 0;
  launch("roi_pool", packed ? &roi_pool_kernel<vector, Feature, T> : &roi_pool_kernel<1, Feature, T>,
         p.num_rois * p.pooled_height, kRoiPoolThreads, 0, stream, p, features, out, argmax);
}

// Adds to sums, which are zero on entry.
template <typename Feature, typename T>
void launch_roi_pool_scatter(const RoiPoolParams<T>& p, const Feature* grad, const int32_t* argmax, T* sums,
                             cudaStream_t stream) {
  if (p.num_rois == 0 || p.channels == 0) return;
  launch("roi_pool backward", &roi_pool_scatter_kernel<Feature, T>, p.num_rois * p.pooled_height, kRoiPoolThreads, 0,
         stream, p, grad, argmax, sums);
}

// The same sums, in a fixed order; written completely.
template <typename Feature, typename T>
void launch_roi_pool_gather(const RoiPoolParams<T>& p, const Feature* grad, const int32_t* argmax, T* sums,
                            cudaStream_t stream) {
  const int64_t cells = p.num_images * p.height * p.width;
  const int64_t blocks = cells * blocks_for(p.channels, kPoolGatherThreads);
  if (blocks == 0) return;
  launch("roi_pool backward", &roi_pool_gather_kernel<Feature, T>, blocks, kPoolGatherThreads, 0, stream, p, grad,
         argmax, sums);
}

}  // namespace fastrcnn
