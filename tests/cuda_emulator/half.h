// __half and __nv_bfloat16: types that numbers are stored in, and their conversion, rounded to the nearest, ties to
// even. Arithmetic on them is left out on purpose: the kernels compute in float.
#pragma once

#include <cmath>

#include "intrinsics.h"

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __half2float(__half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16, fraction = value.bits & 0x3FFu;
  const uint32_t exponent = value.bits >> 10 & 31;
  if (exponent == 31) return __uint_as_float(sign | 0x7F800000u | fraction << 13);  // infinite or NaN
  if (exponent > 0) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
  return __uint_as_float(sign | __float_as_uint(static_cast<float>(fraction) * 0x1p-24f));  // subnormal or 0
}

inline __half __float2half_rn(float value) {
  const uint32_t bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return {0x7FFF};                                  // NaN
  if (magnitude >= 0x477FF000u) return {static_cast<uint16_t>(sign | 0x7C00u)};  // rounds to infinity
  if (magnitude < 0x38800000u) {                                                 // subnormal
    const float units = std::nearbyint(__uint_as_float(magnitude) * 0x1p24f);
    return {static_cast<uint16_t>(sign | static_cast<uint32_t>(units))};
  }
  const uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1);
  return {static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)))};
}

inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float(static_cast<uint32_t>(value.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {0x7FFF};  // NaN
  return {static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16)};
}

inline __half __float2half(float value) { return __float2half_rn(value); }
inline __nv_bfloat16 __float2bfloat16(float value) { return __float2bfloat16_rn(value); }
inline float2 __half22float2(__half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {__bfloat162float(pair.x), __bfloat162float(pair.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
