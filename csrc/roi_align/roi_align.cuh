// RoIAlign on CUDA, forward, and backward with atomic additions. Features are channels-last.
//
// Work: a block owns one row of bins of one RoI. It first lists the cells and weights that the row draws from, along y
// for the row and along x for each of its bins, in shared memory: this is done once for all channels. Then a thread
// owns some consecutive channels of one bin, so that a warp reads consecutive memory, and adds cell by cell. All levels
// are one launch. A bin too large for its list is walked again by every thread instead.
//
// Forward: each number of the result has one thread and a fixed order of summation, the CPU's, so it is the CPU's to
// the last bit. Backward: RoIs overlap, and atomic additions come in any order, so the last bits change from run to
// run; roi_align_gather.cuh has the reproducible form.
#pragma once

#include "../common/launch.h"
#include "../common/pack.cuh"
#include "roi_align_params.h"

namespace fastrcnn {

constexpr int kRoiAlignThreads = 256;

// One pointer per level, to [N, height, width, C].
template <typename Feature>
struct FeatureMaps {
  Feature* maps[kMaxLevels];
};

// The first element of an image's map.
template <typename Feature, typename T>
__device__ __forceinline__ Feature* image_map(const FeatureMaps<Feature>& features, const RoiAlignParams<T>& p,
                                              int level, int64_t image) {
  return features.maps[level] + image * p.heights[level] * p.widths[level] * p.channels;
}

template <typename T>
struct CellWeight {
  int cell;
  T weight;
};

// The lists of a row of bins in shared memory: list 0 is the row's along y, list 1 + q that of bin q along x.
template <typename T>
struct RowLists {
  CellWeight<T>* cells;  // [1 + pooled_width][capacity]
  int* lengths;          // [1 + pooled_width]; greater than capacity: the list is incomplete
  int capacity;

  __device__ RowLists(CellWeight<T>* shared, int pooled_width, int capacity)
      : cells(shared), lengths(reinterpret_cast<int*>(shared + (1 + pooled_width) * capacity)), capacity(capacity) {}

  // Called by the whole block; the lists are complete after a barrier.
  __device__ void fill(const RoiPlace<T>& place, int bin_row, int pooled_width) {
    for (int b = threadIdx.x; b <= pooled_width; b += blockDim.x) {
      CellWeight<T>* list = cells + b * capacity;
      int length = 0;
      const int room = capacity;
      for_each_cell(b == 0 ? place.y : place.x, b == 0 ? bin_row : b - 1, [&](int cell, T weight) {
        if (length < room) list[length] = {cell, weight};
        ++length;
      });
      lengths[b] = length;
    }
  }

  // Calls add(y, x, weight) for each cell of bin q of the row.
  template <typename Add>
  __device__ __forceinline__ void for_each_cell_of(const RoiPlace<T>& place, int bin_row, int q, const Add& add) const {
    const int y_length = lengths[0], x_length = lengths[1 + q];
    if (y_length <= capacity && x_length <= capacity) {
      for (int i = 0; i < y_length; ++i) {
        const CellWeight<T> y = cells[i];
        for (int j = 0; j < x_length; ++j) {
          const CellWeight<T> x = cells[(1 + q) * capacity + j];
          add(y.cell, x.cell, y.weight * x.weight);
        }
      }
    } else {
      for_each_cell(place.y, bin_row, [&](int y, T y_weight) {
        for_each_cell(place.x, q, [&](int x, T x_weight) { add(y, x, y_weight * x_weight); });
      });
    }
  }
};

// Dynamic shared memory of RowLists.
template <typename T>
size_t row_lists_bytes(const RoiAlignParams<T>& p, int capacity) {
  const size_t lists = 1 + static_cast<size_t>(p.pooled_width);
  return lists * (capacity * sizeof(CellWeight<T>) + sizeof(int));
}

// Cells per list: enough for a fixed sampling ratio and for adaptive bins of up to 62 cells, if it fits.
template <typename T>
int row_lists_capacity(const RoiAlignParams<T>& p) {
  int capacity = p.sampling_ratio > 0 && p.sampling_ratio < 32 ? 2 * p.sampling_ratio : 64;
  while (capacity > 0 && row_lists_bytes(p, capacity) > kSharedBytes) capacity /= 2;
  return capacity;
}

// out: [R, pooled_height, pooled_width, C]. `vector` channels per thread; C is a multiple of it.
template <int vector, typename Feature, typename T>
__global__ void __launch_bounds__(kRoiAlignThreads)
    roi_align_kernel(RoiAlignParams<T> p, FeatureMaps<const Feature> features, Feature* __restrict__ out,
                     int capacity) {
  CU_DYNAMIC_SHARED(CellWeight<T>, shared);
  RowLists<T> lists(shared, p.pooled_width, capacity);
  const int64_t r = blockIdx.x / p.pooled_height;
  const int bin_row = static_cast<int>(blockIdx.x % p.pooled_height);
  const RoiPlace<T> place = roi_place(p, r);
  if (place.image >= 0) lists.fill(place, bin_row, p.pooled_width);
  __syncthreads();
  const Feature* map = place.image >= 0 ? image_map(features, p, place.level, place.image) : nullptr;
  const int64_t row = p.widths[place.level] * p.channels;
  Feature* bins = out + static_cast<int64_t>(blockIdx.x) * p.pooled_width * p.channels;
  const int64_t lanes = p.channels / vector;
  for (int64_t item = threadIdx.x; item < p.pooled_width * lanes; item += blockDim.x) {
    const int q = static_cast<int>(item / lanes);
    const int64_t c = item % lanes * vector;
    T sum[vector];
    for (int v = 0; v < vector; ++v) sum[v] = T(0);
    if (map != nullptr) {
      lists.for_each_cell_of(place, bin_row, q, [&](int y, int x, T weight) {
        const auto cell = *reinterpret_cast<const Pack<Feature, vector>*>(map + y * row + x * p.channels + c);
        for (int v = 0; v < vector; ++v) sum[v] += weight * to_sum(cell.values[v]);
      });
    }
    Pack<Feature, vector> bin;
    for (int v = 0; v < vector; ++v) from_sum(sum[v], bin.values[v]);
    *reinterpret_cast<Pack<Feature, vector>*>(bins + q * p.channels + c) = bin;
  }
}

// grad: [R, pooled_height, pooled_width, C]; sums: zero on entry. A thread owns one channel at a time, so that the
// additions of a warp fall on consecutive memory.
template <typename Feature, typename T>
__global__ void __launch_bounds__(kRoiAlignThreads)
    roi_align_scatter_kernel(RoiAlignParams<T> p, const Feature* __restrict__ grad, FeatureMaps<T> sums, int capacity) {
  CU_DYNAMIC_SHARED(CellWeight<T>, shared);
  RowLists<T> lists(shared, p.pooled_width, capacity);
  const int64_t r = blockIdx.x / p.pooled_height;
  const int bin_row = static_cast<int>(blockIdx.x % p.pooled_height);
  const RoiPlace<T> place = roi_place(p, r);
  if (place.image < 0) return;  // the same for the whole block
  lists.fill(place, bin_row, p.pooled_width);
  __syncthreads();
  T* map = image_map(sums, p, place.level, place.image);
  const int64_t row = p.widths[place.level] * p.channels;
  const Feature* bins = grad + static_cast<int64_t>(blockIdx.x) * p.pooled_width * p.channels;
  for (int64_t item = threadIdx.x; item < p.pooled_width * p.channels; item += blockDim.x) {
    const int q = static_cast<int>(item / p.channels);
    const int64_t c = item % p.channels;
    const T value = to_sum(bins[item]);
    lists.for_each_cell_of(place, bin_row, q, [&](int y, int x, T weight) {
      atomicAdd(map + y * row + x * p.channels + c, weight * value);
    });
  }
}

// All pointers are to device memory. The result is written completely.
template <typename Feature, typename T>
void launch_roi_align(const RoiAlignParams<T>& p, const FeatureMaps<const Feature>& features, Feature* out,
                      cudaStream_t stream) {
  if (p.num_rois == 0 || p.channels == 0) return;
  constexpr int vector = kPackSize<Feature>;
  bool packed = p.channels % vector == 0 && is_pack_aligned(out);
  for (int l = 0; l < p.num_levels; ++l) packed = packed && is_pack_aligned(features.maps[l]);
  const int capacity = row_lists_capacity(p);
  launch("roi_align", packed ? &roi_align_kernel<vector, Feature, T> : &roi_align_kernel<1, Feature, T>,
         p.num_rois * p.pooled_height, kRoiAlignThreads, row_lists_bytes(p, capacity), stream, p, features, out,
         capacity);
}

// Adds to sums, which are zero on entry.
template <typename Feature, typename T>
void launch_roi_align_scatter(const RoiAlignParams<T>& p, const Feature* grad, const FeatureMaps<T>& sums,
                              cudaStream_t stream) {
  if (p.num_rois == 0 || p.channels == 0) return;
  const int capacity = row_lists_capacity(p);
  launch("roi_align backward", &roi_align_scatter_kernel<Feature, T>, p.num_rois * p.pooled_height, kRoiAlignThreads,
         row_lists_bytes(p, capacity), stream, p, grad, sums, capacity);
}

}  // namespace fastrcnn
