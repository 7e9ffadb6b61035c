// Large results on the CPU in huge pages.
//
// The C library takes large blocks fresh from the kernel, which clears them page by page as they are first written. At
// 4 KiB a page that takes longer than a RoIAlign that fills them; at 2 MiB a fifth of it.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <chrono>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastrcnn {

constexpr uintptr_t kHugePage = 2 << 20;  // bytes

// Asks for huge pages in a new tensor that threads will fill in an order of their own, before anything is written: one
// write into each page, so that no two threads clear the same one. Where memory is fragmented, a huge page comes only
// after others were moved, which takes longer than small pages do: the rest is then left to those. Without effect where
// Linux does not grant huge pages (/sys/kernel/mm/transparent_hugepage/enabled is never), on other systems, and for
// small tensors, whose memory is mostly reused.
inline void map_huge_pages(torch::stable::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr auto kTooLong = std::chrono::milliseconds(1);  // ten times what clearing a huge page takes
  const uintptr_t memory = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t begin = (memory + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (memory + tensor.numel() * tensor.element_size()) / kHugePage * kHugePage;
  if (end < begin + 2 * kHugePage) return;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  std::atomic<bool> fragmented = false;
  const int64_t pages = static_cast<int64_t>((end - begin) / kHugePage);
  torch::stable::parallel_for(0, pages, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last && !fragmented; ++i) {
      const auto start = std::chrono::steady_clock::now();
      *reinterpret_cast<volatile char*>(begin + i * kHugePage) = 0;
      if (std::chrono::steady_clock::now() - start > kTooLong) fragmented = true;
    }
  });
  if (fragmented) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_NOHUGEPAGE);
#else
  static_cast<void>(tensor);
#endif
}

}  // namespace fastrcnn
