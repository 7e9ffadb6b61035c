// Exponential and logarithm in plain arithmetic: vectorised by the compiler, and the same bits on every SIMD level and
// on CUDA, which the libraries' functions are not. Within two units in the last place.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/host_device.h"

namespace fastrcnn {

// How T is laid out, and ln 2 in two parts, of which the first has so few bits that an exponent times it is exact.
template <typename T>
struct FloatLayout;

template <>
struct FloatLayout<float> {
  using Bits = uint32_t;
  static constexpr int kMantissaBits = 23, kBias = 127;
  static constexpr int kExpTerms = 7, kLogTerms = 5;
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 1.4286068203094173e-06f;
  static constexpr float kSmallestNormal = 0x1p-126f;
};

template <>
struct FloatLayout<double> {
  using Bits = uint64_t;
  static constexpr int kMantissaBits = 52, kBias = 1023;
  static constexpr int kExpTerms = 13, kLogTerms = 11;
  static constexpr double kLn2High = 0x1.62e42fefa38p-1, kLn2Low = 5.497923018708371e-14;
  static constexpr double kSmallestNormal = 0x1p-1022;
};

template <typename To, typename From>
HOST_DEVICE To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// e^x for |x| <= 80; NaN stays NaN. With n the integer nearest to x / ln 2, e^x = 2^n e^r, |r| <= ln(2) / 2, for which
// the first terms of the power series suffice.
template <typename T>
HOST_DEVICE T bounded_exp(T x) {
  using Layout = FloatLayout<T>;
  using Bits = typename Layout::Bits;
  // Added to 1.5 * 2^mantissa, a number is rounded to an integer, and this stands in the lowest bits.
  const T shift = T(1.5) * T(Bits(1) << Layout::kMantissaBits);
  const T shifted = x * T(1.4426950408889634) + shift;
  const T n = shifted - shift;
  const T r = (x - n * Layout::kLn2High) - n * Layout::kLn2Low;
  T sum = T(1);
  for (int k = Layout::kExpTerms; k > 0; --k) sum = T(1) + r * (T(1) / T(k)) * sum;
  const T power = same_bits<T>((same_bits<Bits>(shifted) << Layout::kMantissaBits) + same_bits<Bits>(T(1)));
  return sum * power;
}

// ln x; 0 gives -infinity, a negative number and NaN give NaN. x = 2^e m, sqrt(1/2) <= m < sqrt(2), and
// ln m = 2 artanh(s) = 2 (s + s^3 / 3 + s^5 / 5 + ...) with s = (m - 1) / (m + 1), |s| < 0.172.
template <typename T>
HOST_DEVICE T portable_log(T x) {
  using Layout = FloatLayout<T>;
  using Bits = typename Layout::Bits;
  const bool subnormal = x < Layout::kSmallestNormal;
  const T lifted = x * T(Bits(1) << Layout::kMantissaBits);
  const Bits bits = same_bits<Bits>(subnormal ? lifted : x);
  // The exponent, biased, as seen from sqrt(1/2): as the lowest bits of 2^mantissa it becomes a number.
  const Bits one = Bits(Layout::kBias) << Layout::kMantissaBits;
  const Bits biased = (bits - same_bits<Bits>(T(0.7071067811865476)) + one) >> Layout::kMantissaBits;
  const T whole = T(Bits(1) << Layout::kMantissaBits);
  const T exponent = (same_bits<T>(same_bits<Bits>(whole) | biased) - whole) - T(Layout::kBias);
  const T e = exponent - (subnormal ? T(Layout::kMantissaBits) : T(0));
  const T m = same_bits<T>(bits - (biased << Layout::kMantissaBits) + one);
  const T s = (m - T(1)) / (m + T(1)), square = s * s;
  T sum = T(0);
  for (int k = Layout::kLogTerms - 1; k > 0; --k) sum = (T(1) / T(2 * k + 1) + sum) * square;
  const T value = e * Layout::kLn2High + (T(2) * s + (T(2) * s * sum + e * Layout::kLn2Low));
  const T infinity = T(__builtin_huge_val());
  const T of_large = x < infinity ? value : x;
  const T of_small = x == T(0) ? -infinity : T(__builtin_nan(""));
  return x > T(0) ? of_large : of_small;
}

}  // namespace fastrcnn
