// Max-IoU assignment on CUDA, without an IoU matrix.
//
// Work, both passes: a thread owns one box, a block 256 of them; objects come in tiles of 256 through shared memory and
// every thread meets all of them, in order.
// Pass 1: largest IoU and first best object of the box, in registers. For low-quality matches also the largest IoU of
// each object: an atomic maximum, first in shared memory, then one per block and object in global memory. IoUs are not
// negative, so the bits of the floating-point number, taken as an integer, have the same order. Only IoUs that can
// matter, those of at least min_pos_iou, are entered, which are few.
// Pass 2: low-quality matches. A box can have an object's largest IoU only if its own largest is not less; for the few
// boxes of which this is true the IoU is computed again, by the same code and so to the same bits.
// A maximum does not depend on the order, so neither does the result; it is the CPU's to the last bit.
#pragma once

#include "../common/launch.h"
#include "assignment_params.h"

namespace fastrcnn {

constexpr int kAssignThreads = 256;

// The unsigned integer that holds a floating-point number.
template <typename T>
struct BitsOf {
  using type = unsigned;
};
template <>
struct BitsOf<double> {
  using type = unsigned long long;
};
template <typename T>
using Bits = typename BitsOf<T>::type;

template <typename To, typename From>
__device__ __forceinline__ To bit_copy(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// A tile of objects in shared memory.
template <typename T>
struct GtTile {
  Box<T> boxes[kAssignThreads];
  T areas[kAssignThreads];

  // Called by the whole block; complete after a barrier.
  __device__ void load(const AssignParams<T>& p, int64_t first) {
    const int64_t g = first + threadIdx.x;
    if (g >= p.num_gt) return;
    boxes[threadIdx.x] = p.gt_boxes[g];
    areas[threadIdx.x] = area(p.gt_boxes[g]);
  }
};

// gt_max: [G], zero on entry, not used without match_low_quality.
template <typename T>
__global__ void __launch_bounds__(kAssignThreads)
    assign_kernel(AssignParams<T> p, int64_t* __restrict__ gt_index, T* __restrict__ max_iou, Bits<T>* gt_max) {
  __shared__ GtTile<T> tile;
  __shared__ Bits<T> tile_max[kAssignThreads];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kAssignThreads + threadIdx.x;
  const bool exists = i < p.num_boxes;
  const Box<T> box = exists ? p.boxes[i] : Box<T>{0, 0, 0, 0};  // overlaps nothing
  const T box_area = area(box);
  T best = T(-1);
  int64_t best_gt = 0;
  for (int64_t first = 0; first < p.num_gt; first += kAssignThreads) {
    __syncthreads();  // the tile before has been used
    tile.load(p, first);
    tile_max[threadIdx.x] = 0;
    __syncthreads();
    const int count = static_cast<int>(p.num_gt - first < kAssignThreads ? p.num_gt - first : kAssignThreads);
    for (int g = 0; g < count; ++g) {
      const T overlap = iou(tile.boxes[g], tile.areas[g], box, box_area);
      if (overlap > best) {
        best = overlap;
        best_gt = first + g;
      }
      if (p.match_low_quality && overlap > T(0) && overlap >= p.min_pos_iou) {
        atomicMax(&tile_max[g], bit_copy<Bits<T>>(overlap));
      }
    }
    if (!p.match_low_quality) continue;
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < count && tile_max[threadIdx.x] != 0) {
      atomicMax(&gt_max[first + threadIdx.x], tile_max[threadIdx.x]);
    }
  }
  if (!exists) return;
  best = maximum(best, T(0));
  max_iou[i] = best;
  gt_index[i] = assign_by_max(p, best, best_gt);
}

template <typename T>
__global__ void __launch_bounds__(kAssignThreads)
    assign_low_quality_kernel(AssignParams<T> p, int64_t* __restrict__ gt_index, const T* __restrict__ max_iou,
                              const Bits<T>* __restrict__ gt_max) {
  __shared__ GtTile<T> tile;
  __shared__ T tile_max[kAssignThreads];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kAssignThreads + threadIdx.x;
  const bool exists = i < p.num_boxes;
  const Box<T> box = exists ? p.boxes[i] : Box<T>{0, 0, 0, 0};
  const T box_area = area(box);
  const T own_max = exists ? max_iou[i] : T(-1);
  int64_t match = 0;  // the last object whose largest IoU this box has, counted from 1
  for (int64_t first = 0; first < p.num_gt; first += kAssignThreads) {
    __syncthreads();
    tile.load(p, first);
    if (first + threadIdx.x < p.num_gt) tile_max[threadIdx.x] = bit_copy<T>(gt_max[first + threadIdx.x]);
    __syncthreads();
    const int count = static_cast<int>(p.num_gt - first < kAssignThreads ? p.num_gt - first : kAssignThreads);
    for (int g = 0; g < count; ++g) {
      const T largest = tile_max[g];
      if (!(largest >= p.min_pos_iou && own_max >= largest)) continue;
      if (iou(tile.boxes[g], tile.areas[g], box, box_area) == largest) match = first + g + 1;
    }
  }
  if (match > 0) gt_index[i] = match;
}

// gt_index, max_iou: [n]; gt_max: scratch of G numbers, not used without match_low_quality. All pointers are to device
// memory.
template <typename T>
void launch_assign(const AssignParams<T>& p, int64_t* gt_index, T* max_iou, T* gt_max, cudaStream_t stream) {
  if (p.num_boxes == 0) return;
  const int64_t blocks = blocks_for(p.num_boxes, kAssignThreads);
  auto* gt_max_bits = reinterpret_cast<Bits<T>*>(gt_max);
  const bool low_quality = p.match_low_quality && p.num_gt > 0;
  if (low_quality) zero_async("assign_max_iou", gt_max, static_cast<size_t>(p.num_gt) * sizeof(T), stream);
  launch("assign_max_iou", &assign_kernel<T>, blocks, kAssignThreads, 0, stream, p, gt_index, max_iou, gt_max_bits);
  if (!low_quality) return;
  launch("assign_max_iou (low quality)", &assign_low_quality_kernel<T>, blocks, kAssignThreads, 0, stream, p, gt_index,
         max_iou, gt_max_bits);
}

}  // namespace fastrcnn
