// Pairwise IoU on CUDA.
//
// Work: a block owns 1024 consecutive numbers of the result, a thread four of them, 256 apart, so that a warp writes
// consecutive memory. Boxes are read through the cache: neighbouring threads share the row or have neighbouring
// columns. Numbers do not meet, so the result does not depend on any order; it is the CPU's to the last bit.
#pragma once

#include "../common/launch.h"
#include "../math/box.h"

namespace fastrcnn {

constexpr int kIouThreads = 256;
constexpr int kIouPairs = 1024;  // per block

template <typename T>
__global__ void __launch_bounds__(kIouThreads)
    box_iou_kernel(const Box<T>* __restrict__ a, int64_t n, const Box<T>* __restrict__ b, int64_t m,
                   T* __restrict__ out) {
  const int64_t start = static_cast<int64_t>(blockIdx.x) * kIouPairs;
  const int64_t first_row = start / m, first_column = start % m;
  for (int offset = threadIdx.x; offset < kIouPairs && start + offset < n * m; offset += kIouThreads) {
    // The long division is done once: what remains fits 32 bits, as m does.
    const auto past = static_cast<uint32_t>(first_column + offset), columns = static_cast<uint32_t>(m);
    const Box<T> row = a[first_row + past / columns], column = b[past % columns];
    out[start + offset] = iou(row, area(row), column, area(column));
  }
}

// out: [n, m], m < 2^31. All pointers are to device memory.
template <typename T>
void launch_box_iou(const Box<T>* a, int64_t n, const Box<T>* b, int64_t m, T* out, cudaStream_t stream) {
  if (n * m == 0) return;
  launch("box_iou", &box_iou_kernel<T>, blocks_for(n * m, kIouPairs), kIouThreads, 0, stream, a, n, b, m, out);
}

}  // namespace fastrcnn
