// The functions of CUDA C++ that kernels call: barriers, warp operations, atomics, bits, minima and maxima.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "races.h"
#include "scheduler.h"

// --- barriers --------------------------------------------------------------------------------------------------------

inline void __syncthreads(CUDA_EMULATOR_PLACE) { ::cuda_emulator::barrier(false, {file, line}); }
inline int __syncthreads_count(int predicate, CUDA_EMULATOR_PLACE) {
  return ::cuda_emulator::barrier(predicate != 0, {file, line});
}
inline int __syncthreads_or(int predicate, CUDA_EMULATOR_PLACE) {
  return ::cuda_emulator::barrier(predicate != 0, {file, line}) != 0;
}
inline int __syncthreads_and(int predicate, CUDA_EMULATOR_PLACE) {
  return ::cuda_emulator::barrier(predicate == 0, {file, line}) == 0;
}

// --- warps -----------------------------------------------------------------------------------------------------------

namespace cuda_emulator {

template <typename To, typename From>
To bit_copy_padded(From from) {  // the shorter of the two is padded with zeros
  static_assert(std::is_trivially_copyable_v<To> && std::is_trivially_copyable_v<From>);
  To to{};
  std::memcpy(&to, &from, sizeof to < sizeof from ? sizeof to : sizeof from);
  return to;
}

template <typename T>
T shuffle(unsigned mask, T value, int source, Place place) {
  static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  return bit_copy_padded<T>(warp_op(WarpOp::kShuffle, mask, bit_copy_padded<uint64_t>(value), source, place));
}

}  // namespace cuda_emulator

inline void __syncwarp(unsigned mask = ~0u, CUDA_EMULATOR_PLACE) {
  ::cuda_emulator::warp_op(::cuda_emulator::WarpOp::kSync, mask, 0, 0, {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_EMULATOR_PLACE) {
  using ::cuda_emulator::WarpOp;
  return static_cast<unsigned>(::cuda_emulator::warp_op(WarpOp::kBallot, mask, predicate != 0, 0, {file, line}));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_EMULATOR_PLACE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_EMULATOR_PLACE) {
  return __ballot_sync(mask, predicate == 0, file, line) == 0;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, CUDA_EMULATOR_PLACE) {
  const auto bits = ::cuda_emulator::bit_copy_padded<uint64_t>(value);
  return static_cast<unsigned>(::cuda_emulator::warp_op(::cuda_emulator::WarpOp::kMatch, mask, bits, 0, {file, line}));
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, CUDA_EMULATOR_PLACE) {
  const int segment = ::cuda_emulator::current_lane() & ~(width - 1);
  return ::cuda_emulator::shuffle(mask, value, segment | (source & (width - 1)), {file, line});
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize, CUDA_EMULATOR_PLACE) {
  const int lane = ::cuda_emulator::current_lane(), source = lane ^ lanes;
  return ::cuda_emulator::shuffle(mask, value, source / width > lane / width ? lane : source, {file, line});
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = warpSize, CUDA_EMULATOR_PLACE) {
  const int lane = ::cuda_emulator::current_lane(), within = (lane & (width - 1)) + static_cast<int>(lanes);
  return ::cuda_emulator::shuffle(mask, value, within >= width ? lane : lane + static_cast<int>(lanes), {file, line});
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = warpSize, CUDA_EMULATOR_PLACE) {
  const int lane = ::cuda_emulator::current_lane(), within = (lane & (width - 1)) - static_cast<int>(lanes);
  return ::cuda_emulator::shuffle(mask, value, within < 0 ? lane : lane - static_cast<int>(lanes), {file, line});
}

// Reductions over the lanes of the mask: 32-bit integers, as in CUDA (sm_80 and later).
namespace cuda_emulator {
template <typename T, typename Function>
T warp_reduce(unsigned mask, T value, const Function& function, Place place) {
  bool first = true;
  T result{};
  for (int lane = 0; lane < warpSize; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const T other = shuffle(mask, value, lane, place);
    result = first ? other : function(result, other);
    first = false;
  }
  return result;
}
}  // namespace cuda_emulator
#define CUDA_EMULATOR_REDUCE(name, T, expression)                                                             \
  inline T name(unsigned mask, T value, CUDA_EMULATOR_PLACE) {                                                \
    return ::cuda_emulator::warp_reduce(mask, value, [](T a, T b) -> T { return expression; }, {file, line}); \
  }
CUDA_EMULATOR_REDUCE(__reduce_add_sync, unsigned, a + b)
CUDA_EMULATOR_REDUCE(__reduce_add_sync, int, a + b)
CUDA_EMULATOR_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
CUDA_EMULATOR_REDUCE(__reduce_max_sync, int, a > b ? a : b)
CUDA_EMULATOR_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
CUDA_EMULATOR_REDUCE(__reduce_min_sync, int, a < b ? a : b)
CUDA_EMULATOR_REDUCE(__reduce_or_sync, unsigned, a | b)
CUDA_EMULATOR_REDUCE(__reduce_and_sync, unsigned, a& b)
#undef CUDA_EMULATOR_REDUCE

// --- atomics ---------------------------------------------------------------------------------------------------------

namespace cuda_emulator {

// All threads run on one CPU thread: what does not wait is not interrupted. Returns the value before.
template <typename T, typename Function>
__attribute__((no_sanitize("thread"), noinline)) T read_modify_write(T* address, const Function& function) {
  races::atomic_access(address, sizeof(T), __builtin_return_address(0));
  const T before = *address;
  *address = function(before);
  return before;
}

}  // namespace cuda_emulator

#define CUDA_EMULATOR_ATOMIC(name, expression)                              \
  template <typename T>                                                     \
  __forceinline__ T name(T* address, std::type_identity_t<T> value) {       \
    return ::cuda_emulator::read_modify_write(address, [=](T before) -> T { \
      static_cast<void>(before);                                            \
      return expression;                                                    \
    });                                                                     \
  }
CUDA_EMULATOR_ATOMIC(atomicAdd, before + value)
CUDA_EMULATOR_ATOMIC(atomicSub, before - value)
CUDA_EMULATOR_ATOMIC(atomicMax, before > value ? before : value)
CUDA_EMULATOR_ATOMIC(atomicMin, before < value ? before : value)
CUDA_EMULATOR_ATOMIC(atomicOr, before | value)
CUDA_EMULATOR_ATOMIC(atomicAnd, before& value)
CUDA_EMULATOR_ATOMIC(atomicXor, before ^ value)
CUDA_EMULATOR_ATOMIC(atomicExch, value)
#undef CUDA_EMULATOR_ATOMIC

template <typename T>
__forceinline__ T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return ::cuda_emulator::read_modify_write(address, [=](T before) { return before == expected ? value : before; });
}

inline void __threadfence() {}
inline void __threadfence_block() {}

// --- bits and arithmetic ---------------------------------------------------------------------------------------------

template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline int __clzll(long long value) {
  return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}
inline int __float_as_int(float value) { return ::cuda_emulator::bit_copy_padded<int>(value); }
inline unsigned __float_as_uint(float value) { return ::cuda_emulator::bit_copy_padded<unsigned>(value); }
inline float __int_as_float(int bits) { return ::cuda_emulator::bit_copy_padded<float>(bits); }
inline float __uint_as_float(unsigned bits) { return ::cuda_emulator::bit_copy_padded<float>(bits); }
inline long long __double_as_longlong(double value) { return ::cuda_emulator::bit_copy_padded<long long>(value); }
inline double __longlong_as_double(long long bits) { return ::cuda_emulator::bit_copy_padded<double>(bits); }
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }

#define CUDA_EMULATOR_MIN_MAX(T)                   \
  inline T max(T a, T b) { return a > b ? a : b; } \
  inline T min(T a, T b) { return a < b ? a : b; }
CUDA_EMULATOR_MIN_MAX(int)
CUDA_EMULATOR_MIN_MAX(unsigned)
CUDA_EMULATOR_MIN_MAX(long)
CUDA_EMULATOR_MIN_MAX(unsigned long)
CUDA_EMULATOR_MIN_MAX(long long)
CUDA_EMULATOR_MIN_MAX(unsigned long long)
#undef CUDA_EMULATOR_MIN_MAX
inline float max(float a, float b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
