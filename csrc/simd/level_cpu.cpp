// Which instruction set the CPU kernels use.
#include "level.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastrcnn {
namespace {

SimdLevel best_level() {
#if FASTRCNN_X86_LEVELS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) {
    return SimdLevel::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return SimdLevel::avx2;
  }
#endif
  return SimdLevel::baseline;
}

SimdLevel choose_level() {
  const SimdLevel best = best_level();
  const char* wanted = std::getenv("FASTRCNN_SIMD");
  if (wanted == nullptr || *wanted == '\0') return best;
  const char* const names[] = {"baseline", "avx2", "avx512"};
  for (int level = 0; level < 3; ++level) {
    if (std::string(wanted) != names[level]) continue;
    if (level <= static_cast<int>(best)) return static_cast<SimdLevel>(level);
    throw std::runtime_error(std::string("FASTRCNN_SIMD: this processor has levels up to ") +
                             names[static_cast<int>(best)] + ", got " + wanted);
  }
  throw std::runtime_error(std::string("FASTRCNN_SIMD: expected baseline, avx2 or avx512, got ") + wanted);
}

}  // namespace

SimdLevel simd_level() {
  static const SimdLevel level = choose_level();
  return level;
}

}  // namespace fastrcnn
