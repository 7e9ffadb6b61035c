// Included before every source with operators: their schemas, and their CUDA kernels as those of CPU tensors, are
// registered in a namespace of the variant's own (FASTRCNN_EMULATED).
#pragma once

#include <torch/csrc/stable/library.h>

#define FASTRCNN_REGISTER(kind, key, library, function)                                                         \
  static void function(torch::stable::detail::StableLibrary&);                                                  \
  static const torch::stable::detail::StableTorchLibraryInit C10_CONCATENATE(function, _at_start)(              \
      torch::stable::detail::StableLibrary::Kind::kind, &function, FASTRCNN_EMULATED, key, __FILE__, __LINE__); \
  void function(torch::stable::detail::StableLibrary& library)

#undef STABLE_TORCH_LIBRARY
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY(name, library) \
  FASTRCNN_REGISTER(DEF, nullptr, library, C10_CONCATENATE(define_operators_, __LINE__))
#define STABLE_TORCH_LIBRARY_IMPL(name, key, library) \
  FASTRCNN_REGISTER(IMPL, "CPU", library, C10_CONCATENATE(implement_operators_, __LINE__))
