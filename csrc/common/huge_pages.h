// Large results on the CPU in huge pages.
//
// The C library takes large blocks fresh from the kernel, which clears them page by page as they are first written. At
// 4 KiB a page that takes longer than a RoIAlign that fills them; at 2 MiB a fifth of it.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastrcnn {

// To be called with a new tensor, before anything is written. A wish: without effect where Linux cannot grant it
// (/sys/kernel/mm/transparent_hugepage/enabled is never), on other systems, and for small tensors, whose memory is
// mostly reused.
inline void prefer_huge_pages(torch::stable::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 2 << 20;
  char* const memory = static_cast<char*>(tensor.data_ptr());
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + tensor.numel() * tensor.element_size()) / page * page;
  if (end < begin + 2 * page) return;
  if (madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) != 0) return;
  // One write into each page, so that no two threads clear the same one.
  torch::stable::parallel_for(0, static_cast<int64_t>((end - begin) / page), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) *reinterpret_cast<char*>(begin + i * page) = 0;
  });
#else
  static_cast<void>(tensor);
#endif
}

}  // namespace fastrcnn
