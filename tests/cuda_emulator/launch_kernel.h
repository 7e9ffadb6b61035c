// The launch of a kernel by its address, as <<< >>> does it: csrc/common/launch.h calls it.
#pragma once

#include <tuple>
#include <type_traits>

#include "scheduler.h"

namespace cuda_emulator {

// If set, what runs in the place of kernels (ptx.cpp). It gets the address of every parameter of the kernel, in the
// layout that nvcc and g++ have in common.
using KernelReplacement = void (*)(const char* what, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                                   const void* const* parameters);
extern KernelReplacement kernel_replacement;

template <typename... Parameters, typename... Arguments>
void launch_kernel(const char* what, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   const Arguments&... args) {
  if (kernel_replacement == nullptr) return launch(what, grid, block, shared_bytes, [&] { kernel(args...); });
  const std::tuple<std::remove_cv_t<Parameters>...> parameters(args...);
  std::apply(
      [&](const auto&... parameter) {
        const void* const addresses[] = {&parameter...};
        kernel_replacement(what, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, addresses);
      },
      parameters);
}

}  // namespace cuda_emulator
