// Logarithm, arctangent and exponential in plain arithmetic, without branches: the same bits on every device and SIMD
// level, and the compiler vectorises a loop over them. Accurate to a few units in the last place.
//
// The first two are the same series, x * (1 + z/3 + z^2/5 + ...): with z = x^2 it is artanh x, with z = -x^2 arctan x.
// The argument is first brought close to 0, where few terms suffice.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../common/host_device.h"

namespace fastrcnn {

// What differs between the types: the integer of the same size, the bits of the mantissa, how many terms of the series
// reach the last place for |x| <= 0.172 (logarithm), |x| <= 0.414 (arctangent) and |x| <= 0.347 (exponential), two
// numbers beyond which e^x is 0 and infinity, and ln 2 in two parts, of which the first has so few bits that a small
// integer times it is exact.
template <typename T>
struct FloatTraits;
template <>
struct FloatTraits<float> {
  using Int = int32_t;
  static constexpr int mantissa_bits = 23, log_terms = 5, arctan_terms = 9, exp_terms = 8;
  static constexpr float exp_zero = -104.0f, exp_infinity = 89.0f;
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 1.4286068203094173e-06f;
};
template <>
struct FloatTraits<double> {
  using Int = int64_t;
  static constexpr int mantissa_bits = 52, log_terms = 12, arctan_terms = 22, exp_terms = 14;
  static constexpr double exp_zero = -746.0, exp_infinity = 710.0;
  static constexpr double ln2_high = 0x1.62e42fefa38p-1, ln2_low = 5.497923018708371e-14;
};

// 1/(2k+1) + z/(2k+3) + ... up to the given number of terms. A recursion, not a loop: surely unrolled.
template <int k, int terms, typename T>
HOST_DEVICE T odd_series(T z) {
  if constexpr (k + 1 == terms) {
    return T(1) / T(2 * k + 1);
  } else {
    return T(1) / T(2 * k + 1) + z * odd_series<k + 1, terms>(z);
  }
}

// The natural logarithm. Zero and numbers too small to be normal give -infinity, negative ones NaN; NaN stays NaN.
template <typename T>
HOST_DEVICE T logarithm(T x) {
  using Traits = FloatTraits<T>;
  using Int = typename Traits::Int;
  // x = m * 2^e with m from sqrt(1/2) to sqrt(2); log m = 2 artanh((m - 1) / (m + 1))
  const T sqrt_half = T(0.70710678118654752);
  std::make_unsigned_t<Int> bits, origin;  // differences may wrap around, for numbers that have no logarithm
  memcpy(&bits, &x, sizeof bits);
  memcpy(&origin, &sqrt_half, sizeof origin);
  const Int e = static_cast<Int>(bits - origin) >> Traits::mantissa_bits;
  bits -= static_cast<std::make_unsigned_t<Int>>(e) << Traits::mantissa_bits;
  T m;
  memcpy(&m, &bits, sizeof m);
  const T s = (m - T(1)) / (m + T(1));
  const T log_m = T(2) * s * odd_series<0, Traits::log_terms>(s * s);
  const T result = static_cast<T>(e) * T(0.69314718055994531) + log_m;
  const T of_small = x < T(0) ? T(NAN) : -T(INFINITY);
  return x < std::numeric_limits<T>::min() ? of_small : (x < T(INFINITY) ? result : x);
}

// The arctangent, in (-pi/2, pi/2). NaN stays NaN.
template <typename T>
HOST_DEVICE T arctangent(T x) {
  const T pi = T(3.14159265358979324), one = T(1);
  const T size = x < T(0) ? -x : x;
  // arctan a = pi/2 - arctan(1/a), and arctan a = pi/4 + arctan((a - 1) / (a + 1))
  const bool steep = size > one;
  const T a = (size < one ? size : one) / (one > size ? one : size);
  const bool middle = a > T(0.41421356237309505);  // tan(pi/8)
  const T s = (middle ? a - one : a) / (middle ? a + one : one);
  T angle = s * odd_series<0, FloatTraits<T>::arctan_terms>(-s * s) + (middle ? pi / T(4) : T(0));
  angle = steep ? pi / T(2) - angle : angle;
  return x < T(0) ? -angle : angle;
}

// 1 + x/k (1 + x/(k+1) (1 + ...)): for k = 1 the power series of e^x.
template <int k, int terms, typename T>
HOST_DEVICE T power_series(T x) {
  if constexpr (k == terms) {
    return T(1);
  } else {
    return T(1) + x * (T(1) / T(k)) * power_series<k + 1, terms>(x);
  }
}

// e^x: from 0, through the numbers too small to be normal, to infinity. NaN stays NaN.
template <typename T>
HOST_DEVICE T exponential(T x) {
  using Traits = FloatTraits<T>;
  using Int = typename Traits::Int;
  using Bits = std::make_unsigned_t<Int>;
  const T least = Traits::exp_zero, most = Traits::exp_infinity;
  x = x < least ? least : (x > most ? most : x);
  // e^x = 2^n e^r with the integer n nearest to x / ln 2. Added to 1.5 * 2^mantissa_bits, a number is rounded to an
  // integer, which then stands in the lowest bits.
  const T shift = T(1.5) * static_cast<T>(Int(1) << Traits::mantissa_bits), one = T(1);
  const T shifted = x * T(1.44269504088896341) + shift;
  const T n = shifted - shift;
  const T r = (x - n * Traits::ln2_high) - n * Traits::ln2_low;
  Bits bits, shift_bits, one_bits;
  memcpy(&bits, &shifted, sizeof bits);
  memcpy(&shift_bits, &shift, sizeof shift_bits);
  memcpy(&one_bits, &one, sizeof one_bits);
  // 2^n in two factors, for it may be too small or too large to be a normal number. An integer becomes a power of two
  // by moving it to where an exponent is.
  const Int exponent = static_cast<Int>(bits - shift_bits), half = exponent >> 1;
  const Bits low_bits = (static_cast<Bits>(half) << Traits::mantissa_bits) + one_bits;
  const Bits high_bits = (static_cast<Bits>(exponent - half) << Traits::mantissa_bits) + one_bits;
  T low, high;
  memcpy(&low, &low_bits, sizeof low);
  memcpy(&high, &high_bits, sizeof high);
  return power_series<1, Traits::exp_terms>(r) * low * high;
}

}  // namespace fastrcnn
