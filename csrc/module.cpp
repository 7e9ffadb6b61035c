// fastrcnn._C: how the libraries beside it were built. It does not touch torch, so it imports under any version.
#include <pybind11/pybind11.h>

#include "simd/level.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

namespace py = pybind11;

static py::dict build_info() {
  py::dict info;
  info["version"] = TEXT(FASTRCNN_VERSION);
  info["source"] = TEXT(FASTRCNN_SOURCE);  // fastrcnn/ops/_source.py
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#elif defined(_MSC_VER)
  info["compiler"] = "msvc " TEXT(_MSC_VER);
#endif
#if FASTRCNN_X86_LEVELS
  info["simd"] = py::make_tuple("baseline", "avx2", "avx512");  // what the CPU kernels are compiled for
#else
  info["simd"] = py::make_tuple("baseline");
#endif
  info["abi_target"] = TEXT(FASTRCNN_ABI_TARGET);   // the oldest torch whose stable ABI the libraries use
  info["built_with_torch"] = TEXT(FASTRCNN_TORCH);  // the torch whose headers they were compiled with
#ifdef FASTRCNN_CUDA
  info["cuda"] = TEXT(FASTRCNN_CUDA);
  info["cuda_architectures"] = TEXT(FASTRCNN_CUDA_ARCHITECTURES);
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
  return info;
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "How fastrcnn's native libraries were built.";
  m.def("build_info", &build_info,
        "Version, compiler, SIMD levels, torch ABI target, and CUDA version and architectures (None without CUDA).");
}
