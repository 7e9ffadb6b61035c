// RoIAlign on CUDA, forward, and backward with atomic additions. Features are channels-last.
//
// Work: a block owns one RoI. It first lists, in shared memory, the cells and weights that each row of bins draws from
// along y and each column of bins along x: once for all channels and bins. Then a thread owns some consecutive channels
// of one bin after the other, so that a warp reads consecutive memory, and adds cell by cell. All levels are one
// launch. Bins too large for a list (adaptive sampling of a RoI of more than 61 cells per bin) are left to a second
// launch, whose threads walk over the samples themselves.
//
// Forward: each number of the result has one thread and a fixed order of summation, so it is the same on every run.
// Backward: RoIs overlap, and atomic additions come in any order, so the last bits change from run to run;
// roi_align_gather.cuh has the reproducible form.
#pragma once

#include "../common/bin_share.cuh"
#include "../common/pack.cuh"
#include "roi_align_params.h"

namespace fastrcnn {

constexpr int kRoiAlignThreads = 256;
// At least, per multiprocessor: as many as leave each thread the registers it needs.
template <typename T>
constexpr int kRoiAlignBlocks = sizeof(T) == 8 ? 2 : 3;

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

// y or x, member by member: a choice between the structs would put them into local memory.
template <typename T>
__device__ __forceinline__ RoiAxis<T> choose_axis(const RoiPlace<T>& place, bool y) {
  return {y ? place.y.start : place.x.start, y ? place.y.bin : place.x.bin, y ? place.y.samples : place.x.samples,
          y ? place.y.cells : place.x.cells};
}

// The lists of a RoI in shared memory: list p is that of bin row p along y, list pooled_height + q that of bin column q
// along x.
template <typename T>
struct CellLists {
  CellWeight<T>* cells;  // [pooled_height + pooled_width][capacity]
  int* lengths;          // [pooled_height + pooled_width]; greater than capacity: the list is incomplete
  int capacity;          // 0: there are no lists
  int rows;              // pooled_height

  __device__ CellLists(CellWeight<T>* shared, const RoiAlignParams<T>& p, int capacity)
      : cells(shared),
        lengths(reinterpret_cast<int*>(shared + (p.pooled_height + p.pooled_width) * capacity)),
        capacity(capacity),
        rows(p.pooled_height) {}

  // Called by the whole block; the lists are complete after a barrier. The RoI fits (fits_lists).
  __device__ void fill(const RoiPlace<T>& place, const RoiAlignParams<T>& p) {
    for (int b = threadIdx.x; b < p.pooled_height + p.pooled_width; b += blockDim.x) {
      const bool y = b < rows;
      CellWeight<T>* list = cells + b * capacity;
      int length = 0;
      for_each_cell(choose_axis(place, y), y ? b : b - rows,
                    [&](int cell, T weight) { list[length++] = {cell, weight}; });
      lengths[b] = length;
    }
  }

  // Calls add(y, x, weight) for each cell of the bin in row p and column q.
  template <typename Add>
  __device__ __forceinline__ void for_each_cell_of(int p, int q, const Add& add) const {
    const CellWeight<T>* y_cells = cells + p * capacity;
    const CellWeight<T>* x_cells = cells + (rows + q) * capacity;
    const int y_length = lengths[p], x_length = lengths[rows + q];
    for (int i = 0; i < y_length; ++i) {
      const CellWeight<T> y = y_cells[i];
#pragma unroll 4
      for (int j = 0; j < x_length; ++j) {
        const CellWeight<T> x = x_cells[j];
        add(y.cell, x.cell, y.weight * x.weight);
      }
    }
  }
};

// Whether the cells of every bin of a RoI are at most `capacity` per axis: what a list holds. A sample has two. Those
// of a reversed RoI can come twice, so only the number of its samples tells.
template <typename T>
__device__ __forceinline__ bool fits_lists(const RoiPlace<T>& place, int capacity) {
  const auto fits = [&](const RoiAxis<T>& axis) {
    const bool few_cells = axis.bin <= static_cast<T>(capacity - 3) || axis.cells <= capacity;
    return 2 * static_cast<int64_t>(axis.samples) <= capacity || (axis.bin >= T(0) && few_cells);
  };
  return capacity > 0 && fits(place.y) && fits(place.x);
}

// Whether there can be RoIs that do not fit.
template <typename T>
bool may_exceed_lists(const RoiAlignParams<T>& p, int capacity) {
  if (p.sampling_ratio > 0) return 2 * p.sampling_ratio > capacity;
  int longest = 0;
  for (int l = 0; l < p.num_levels; ++l) {
    longest = p.heights[l] > longest ? p.heights[l] : longest;
    longest = p.widths[l] > longest ? p.widths[l] : longest;
  }
  return longest > capacity;
}

// Dynamic shared memory of CellLists.
template <typename T>
size_t cell_lists_bytes(const RoiAlignParams<T>& p, int capacity) {
  const size_t lists = static_cast<size_t>(p.pooled_height) + static_cast<size_t>(p.pooled_width);
  return capacity > 0 ? lists * (capacity * sizeof(CellWeight<T>) + sizeof(int)) : 0;
}

// Cells per list: enough for a fixed sampling ratio and for adaptive bins of up to 61 cells, if the lists then fit into
// shared memory; 0: no lists.
template <typename T>
int cell_lists_capacity(const RoiAlignParams<T>& p) {
  int capacity = p.sampling_ratio > 0 && p.sampling_ratio < 32 ? 2 * p.sampling_ratio : 64;
  while (capacity > 0 && cell_lists_bytes(p, capacity) > kSharedBytes) capacity /= 2;
  return capacity;
}

// Calls add(y, x, weight) for each cell of a bin, from its samples.
template <typename T, typename Add>
__device__ __forceinline__ void for_each_cell_of(const RoiPlace<T>& place, int p, int q, const Add& add) {
  for_each_cell(place.y, p, [&](int y, T y_weight) {
    for_each_cell(place.x, q, [&](int x, T x_weight) { add(y, x, y_weight * x_weight); });
  });
}

// out: [R, pooled_height, pooled_width, C]. `vector` channels per thread; C is a multiple of it. listed: the RoIs that
// fit the lists, and padding; otherwise the others.
template <bool listed, int vector, typename Feature, typename T>
__global__ void __launch_bounds__(kRoiAlignThreads, kRoiAlignBlocks<T>)
    roi_align_kernel(const __grid_constant__ RoiAlignParams<T> p,
                     const __grid_constant__ FeatureMaps<const Feature> features, Feature* __restrict__ out,
                     int capacity) {
  CU_DYNAMIC_SHARED(CellWeight<T>, shared);
  CellLists<T> lists(shared, p, capacity);
  const int64_t r = blockIdx.x;
  const RoiPlace<T> place = roi_place(p, r);
  const bool padding = place.image < 0;
  if ((padding || fits_lists(place, capacity)) != listed) return;  // the same for the whole block
  if (listed && !padding) lists.fill(place, p);
  __syncthreads();
  const int64_t row = p.widths[place.level] * p.channels;
  const int num_bins = p.pooled_height * p.pooled_width;
  const Feature* map = image_map(features, p, place.level, padding ? 0 : place.image);
  Feature* bins = out + r * num_bins * p.channels;
  const BinShare share(p.channels / vector, num_bins);
  for (int b = share.first_bin; b < num_bins; b += share.bin_stride) {
    for (int64_t c = static_cast<int64_t>(share.lane) * vector; c < p.channels; c += share.stride * vector) {
      T sum[vector];
      for (int v = 0; v < vector; ++v) sum[v] = T(0);
      const auto add = [&](int y, int x, T weight) {
        const auto cell = *reinterpret_cast<const Pack<Feature, vector>*>(map + c + y * row + x * p.channels);
        for (int v = 0; v < vector; ++v) sum[v] += weight * to_sum(cell.values[v]);
      };
      if constexpr (listed) {
        if (!padding) lists.for_each_cell_of(b / p.pooled_width, b % p.pooled_width, add);
      } else {
        for_each_cell_of(place, b / p.pooled_width, b % p.pooled_width, add);
      }
      Pack<Feature, vector> bin;
      for (int v = 0; v < vector; ++v) from_sum(sum[v], bin.values[v]);
      *reinterpret_cast<Pack<Feature, vector>*>(bins + b * p.channels + c) = bin;
    }
  }
}

// grad: [R, pooled_height, pooled_width, C]; sums: zero on entry. vector, listed: as in the forward pass.
template <bool listed, int vector, typename Feature, typename T>
__global__ void __launch_bounds__(kRoiAlignThreads, kRoiAlignBlocks<T>)
    roi_align_scatter_kernel(const __grid_constant__ RoiAlignParams<T> p, const Feature* __restrict__ grad,
                             const __grid_constant__ FeatureMaps<T> sums, int capacity) {
  CU_DYNAMIC_SHARED(CellWeight<T>, shared);
  CellLists<T> lists(shared, p, capacity);
  const int64_t r = blockIdx.x;
  const RoiPlace<T> place = roi_place(p, r);
  if (place.image < 0 || fits_lists(place, capacity) != listed) return;  // the same for the whole block
  if (listed) lists.fill(place, p);
  __syncthreads();
  const int64_t row = p.widths[place.level] * p.channels;
  const int num_bins = p.pooled_height * p.pooled_width;
  T* map = image_map(sums, p, place.level, place.image);
  const Feature* bins = grad + r * num_bins * p.channels;
  const BinShare share(p.channels / vector, num_bins);
  for (int b = share.first_bin; b < num_bins; b += share.bin_stride) {
    for (int64_t c = static_cast<int64_t>(share.lane) * vector; c < p.channels; c += share.stride * vector) {
      const auto bin = *reinterpret_cast<const Pack<Feature, vector>*>(bins + b * p.channels + c);
      const auto add = [&](int y, int x, T weight) {
        Pack<T, vector> part;
        for (int v = 0; v < vector; ++v) part.values[v] = weight * to_sum(bin.values[v]);
        atomic_add(reinterpret_cast<Pack<T, vector>*>(map + c + y * row + x * p.channels), part);
      };
      if constexpr (listed) {
        lists.for_each_cell_of(b / p.pooled_width, b % p.pooled_width, add);
      } else {
        for_each_cell_of(place, b / p.pooled_width, b % p.pooled_width, add);
      }
    }
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
  const int capacity = cell_lists_capacity(p);
  const auto launch_one = [&]<bool listed>() {
    launch("roi_align",
           packed ? &roi_align_kernel<listed, vector, Feature, T> : &roi_align_kernel<listed, 1, Feature, T>,
           p.num_rois, kRoiAlignThreads, cell_lists_bytes(p, capacity), stream, p, features, out, capacity);
  };
  launch_one.template operator()<true>();
  if (may_exceed_lists(p, capacity)) launch_one.template operator()<false>();
}

// Adds to sums, which are zero on entry.
template <typename Feature, typename T>
void launch_roi_align_scatter(const RoiAlignParams<T>& p, const Feature* grad, const FeatureMaps<T>& sums,
                              cudaStream_t stream) {
  if (p.num_rois == 0 || p.channels == 0) return;
  constexpr int vector = kPackSize<T>;
  bool packed = p.channels % vector == 0 && is_pack_aligned(grad);
  for (int l = 0; l < p.num_levels; ++l) packed = packed && is_pack_aligned(sums.maps[l]);
  const int capacity = cell_lists_capacity(p);
  const auto launch_one = [&]<bool listed>() {
    launch("roi_align backward",
           packed ? &roi_align_scatter_kernel<listed, vector, Feature, T>
                  : &roi_align_scatter_kernel<listed, 1, Feature, T>,
           p.num_rois, kRoiAlignThreads, cell_lists_bytes(p, capacity), stream, p, grad, sums, capacity);
  };
  launch_one.template operator()<true>();
  if (may_exceed_lists(p, capacity)) launch_one.template operator()<false>();
}

}  // namespace fastrcnn
