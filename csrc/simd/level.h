// Instruction sets of the CPU kernels, chosen at run time.
//
// The hot loops stand in <op>/<op>_simd.inl, written once in plain C++ and vector types. simd/<level>_cpu.cpp includes
// all of them between #pragma GCC push_options / target and pop_options, each in a namespace named after its level.
// What is outside these loops is compiled for the oldest processor. Results are the same, bit for bit, on every level.
#pragma once

#include <cstdint>

namespace fastrcnn {

enum class SimdLevel { baseline, avx2, avx512 };

// The best level of this processor, or the lower one that the environment variable FASTRCNN_SIMD names
// (baseline, avx2 or avx512), read once. Throws std::runtime_error for another name or a level that the processor
// lacks.
SimdLevel simd_level();

}  // namespace fastrcnn

// Declares functions once per level:  FASTRCNN_DECLARE_SIMD(void scale(float* x, int64_t n);)
// Calls the one in use:               FASTRCNN_SIMD(scale, x, n);
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)  // clang ignores #pragma GCC target
#define FASTRCNN_X86_LEVELS 1
#define FASTRCNN_DECLARE_SIMD(...) \
  namespace baseline {             \
  __VA_ARGS__                      \
  }                                \
  namespace avx2 {                 \
  __VA_ARGS__                      \
  }                                \
  namespace avx512 {               \
  __VA_ARGS__                      \
  }
#define FASTRCNN_SIMD(function, ...)                                                         \
  (::fastrcnn::simd_level() == ::fastrcnn::SimdLevel::avx512 ? avx512::function(__VA_ARGS__) \
   : ::fastrcnn::simd_level() == ::fastrcnn::SimdLevel::avx2 ? avx2::function(__VA_ARGS__)   \
                                                             : baseline::function(__VA_ARGS__))
#else
#define FASTRCNN_X86_LEVELS 0
#define FASTRCNN_DECLARE_SIMD(...) \
  namespace baseline {             \
  __VA_ARGS__                      \
  }
#define FASTRCNN_SIMD(function, ...) baseline::function(__VA_ARGS__)
#endif
