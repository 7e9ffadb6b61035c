// RoIPool on CUDA. Everything is channels-last, and consecutive threads own consecutive channels, so that a warp reads
// and writes consecutive memory.
//
// Forward: a thread owns one number of the result and walks over the cells of its bin in the order of the definition.
// Backward: a thread owns one number of the gradient and adds it to the cell that the maximum is from. Bins share
// cells, and atomic additions come in any order, so the last bits change from run to run. The deterministic form turns
// it round: a block owns one cell, which its threads share out by channels; it lists the RoIs that reach the cell, in
// ascending order, and each thread adds up the bins whose maximum is from there. Every cell is written once.
#pragma once

#include "../common/block.cuh"
#include "../common/pack.cuh"
#include "roi_pool_params.h"

namespace fastrcnn {

template <typename Feature, typename T>
struct MaxOfBin {
  RoiPoolParams<T> p;
  const Feature* features;  // [N, height, width, C]
  Feature* out;             // [R, pooled_height, pooled_width, C]
  int32_t* argmax;

  __device__ void operator()(int64_t i) const {
    const int64_t c = i % p.channels, bin = i / p.channels;
    const int column = static_cast<int>(bin % p.pooled_width);
    const int row = static_cast<int>(bin / p.pooled_width % p.pooled_height);
    const PoolPlace<T> place = pool_place(p, bin / p.pooled_width / p.pooled_height);
    T largest = T(0);
    int32_t where = -1;
    if (place.image >= 0) {
      const Feature* map = features + place.image * p.height * p.width * p.channels + c;
      const CellRange y = bin_cells(place.y, row), x = bin_cells(place.x, column);
      if (y.first < y.last && x.first < x.last) largest = lowest_feature<T>();
      for (int cell_y = y.first; cell_y < y.last; ++cell_y) {
        for (int cell_x = x.first; cell_x < x.last; ++cell_x) {
          const int32_t index = cell_y * p.width + cell_x;
          const T value = to_sum(map[index * p.channels]);
          if (value > largest) largest = value, where = index;
        }
      }
    }
    from_sum(largest, out[i]);
    argmax[i] = where;
  }
};

template <typename Feature, typename T>
struct AddToMaximum {
  RoiPoolParams<T> p;
  const Feature* grad;  // [R, pooled_height, pooled_width, C]
  const int32_t* argmax;
  T* sums;  // [N, height, width, C], zero on entry

  __device__ void operator()(int64_t i) const {
    if (argmax[i] < 0) return;
    const int64_t c = i % p.channels, r = i / p.channels / p.pooled_width / p.pooled_height;
    const int64_t cell = static_cast<int64_t>(p.rois[r * 5]) * p.height * p.width + argmax[i];
    atomicAdd(sums + cell * p.channels + c, to_sum(grad[i]));
  }
};

constexpr int kPoolGatherThreads = 128;
template <typename T>
constexpr int kPoolGatherBlocks = sizeof(T) == 8 ? 6 : 8;  // at least, per multiprocessor

// sums: [N, height, width, C], written completely.
template <typename Feature, typename T>
__global__ void __launch_bounds__(kPoolGatherThreads, kPoolGatherBlocks<T>)
    roi_pool_gather_kernel(RoiPoolParams<T> p, const Feature* __restrict__ grad, const int32_t* __restrict__ argmax,
                           T* __restrict__ sums) {
  __shared__ int64_t chosen[kPoolGatherThreads];
  const int64_t slices = (p.channels + kPoolGatherThreads - 1) / kPoolGatherThreads;
  const int64_t cell = blockIdx.x / slices, c = blockIdx.x % slices * kPoolGatherThreads + threadIdx.x;
  const int64_t image = cell / p.width / p.height;
  const int32_t index = static_cast<int32_t>(cell % (static_cast<int64_t>(p.height) * p.width));
  const int y = index / p.width, x = index % p.width;
  T sum = T(0);
  for (int64_t first = 0; first < p.num_rois; first += kPoolGatherThreads) {
    const int64_t mine = first + threadIdx.x;
    bool reaches = false;
    if (mine < p.num_rois) {
      const PoolPlace<T> place = pool_place(p, mine);
      reaches = place.image == image && bin_cells(place.y, 0).first <= y && bin_cells(place.x, 0).first <= x &&
                bin_cells(place.y, p.pooled_height - 1).last > y && bin_cells(place.x, p.pooled_width - 1).last > x;
    }
    const BlockRank rank = block_rank<kPoolGatherThreads>(reaches);
    if (reaches) chosen[rank.rank] = mine;
    __syncthreads();
    for (int k = 0; k < rank.total; ++k) {
      const int64_t r = chosen[k];
      const PoolPlace<T> place = pool_place(p, r);
      for (int row = 0; row < p.pooled_height; ++row) {
        const CellRange cells_y = bin_cells(place.y, row);
        if (y < cells_y.first || y >= cells_y.last) continue;
        for (int column = 0; column < p.pooled_width; ++column) {
          const CellRange cells_x = bin_cells(place.x, column);
          if (x < cells_x.first || x >= cells_x.last || c >= p.channels) continue;
          const int64_t i = ((r * p.pooled_height + row) * p.pooled_width + column) * p.channels + c;
          if (argmax[i] == index) sum += to_sum(grad[i]);
        }
      }
    }
    __syncthreads();  // the list has been read
  }
  if (c < p.channels) sums[cell * p.channels + c] = sum;
}

// All pointers are to device memory.
template <typename Feature, typename T>
void launch_roi_pool(const RoiPoolParams<T>& p, const Feature* features, Feature* out, int32_t* argmax,
                     cudaStream_t stream) {
  const int64_t n = p.num_rois * p.pooled_height * p.pooled_width * p.channels;
  for_each("roi_pool", n, MaxOfBin<Feature, T>{p, features, out, argmax}, stream);
}

// Adds to sums, which are zero on entry.
template <typename Feature, typename T>
void launch_roi_pool_scatter(const RoiPoolParams<T>& p, const Feature* grad, const int32_t* argmax, T* sums,
                             cudaStream_t stream) {
  const int64_t n = p.num_rois * p.pooled_height * p.pooled_width * p.channels;
  for_each("roi_pool backward", n, AddToMaximum<Feature, T>{p, grad, argmax, sums}, stream);
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
