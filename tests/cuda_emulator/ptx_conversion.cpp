// Conversions between types, and registers taken apart and put together.
#include <cmath>
#include <limits>

#include "half.h"
#include "ptx.h"

namespace cuda_emulator::ptx {
namespace {

template <typename To, typename From, auto function>
void convert(Thread& thread, const Instruction& i) {
  thread.write<To>(i.operands[0], function(thread.read<From>(i.operands[1])));
}

constexpr auto nearest = [](auto x) { return std::nearbyint(x); };
constexpr auto towards_zero = [](auto x) { return std::trunc(x); };
constexpr auto downwards = [](auto x) { return std::floor(x); };
constexpr auto upwards = [](auto x) { return std::ceil(x); };

// A whole number as an integer; the nearest of its type if it is out of range. NaN is 0, or, if 64 bits are involved,
// has only the highest bit set.
template <typename To, typename From>
To clamped(From x) {
  using Limits = std::numeric_limits<To>;
  constexpr bool kIs64Bit = sizeof(To) == 8 || sizeof(From) == 8;
  if (x != x) return kIs64Bit ? static_cast<To>(std::make_unsigned_t<To>(1) << (8 * sizeof(To) - 1)) : To(0);
  if (x <= static_cast<From>(Limits::min())) return Limits::min();
  if (x >= static_cast<From>(Limits::max())) return Limits::max();
  return static_cast<To>(x);
}

template <typename T, typename From, auto round>
void add_rounding_to(InstructionSet& set, const std::string& mode, const std::string& type, const std::string& from) {
  set["cvt." + mode + "." + type + "." + from + "/2"] = convert<T, From, [](From x) { return clamped<T>(round(x)); }>;
}

template <typename T, typename From>
void add_float_to_integer(InstructionSet& set, const std::string& type, const std::string& from) {
  add_rounding_to<T, From, nearest>(set, "rni", type, from);
  add_rounding_to<T, From, towards_zero>(set, "rzi", type, from);
  add_rounding_to<T, From, downwards>(set, "rmi", type, from);
  add_rounding_to<T, From, upwards>(set, "rpi", type, from);
}

template <typename T>
void add_rounding(InstructionSet& set, const std::string& type) {
  set["cvt.rni." + type + "." + type + "/2"] = convert<T, T, [](T x) { return nearest(x); }>;
  set["cvt.rzi." + type + "." + type + "/2"] = convert<T, T, [](T x) { return towards_zero(x); }>;
  set["cvt.rmi." + type + "." + type + "/2"] = convert<T, T, [](T x) { return downwards(x); }>;
  set["cvt.rpi." + type + "." + type + "/2"] = convert<T, T, [](T x) { return upwards(x); }>;
}

template <typename To, typename From>
void add_integer_to_integer(InstructionSet& set, const std::string& to, const std::string& from) {
  set["cvt." + to + "." + from + "/2"] = convert<To, From, [](From x) { return static_cast<To>(x); }>;
}

// Everything from and to an integer type.
template <typename T>
void add_integer(InstructionSet& set, const std::string& type) {
  add_integer_to_integer<int8_t, T>(set, "s8", type);
  add_integer_to_integer<uint8_t, T>(set, "u8", type);
  add_integer_to_integer<int16_t, T>(set, "s16", type);
  add_integer_to_integer<uint16_t, T>(set, "u16", type);
  add_integer_to_integer<int32_t, T>(set, "s32", type);
  add_integer_to_integer<uint32_t, T>(set, "u32", type);
  add_integer_to_integer<int64_t, T>(set, "s64", type);
  add_integer_to_integer<uint64_t, T>(set, "u64", type);
  set["cvt.rn.f32." + type + "/2"] = convert<float, T, [](T x) { return static_cast<float>(x); }>;
  set["cvt.rn.f64." + type + "/2"] = convert<double, T, [](T x) { return static_cast<double>(x); }>;
  add_float_to_integer<T, float>(set, type, "f32");
  add_float_to_integer<T, double>(set, type, "f64");
}

// --- 16 bits ---------------------------------------------------------------------------------------------------------

float from_half(uint16_t bits) { return __half2float({bits}); }
float from_bfloat(uint16_t bits) { return __bfloat162float({bits}); }
uint16_t to_half(float x) { return __float2half_rn(x).bits; }
uint16_t to_bfloat(float x) { return __float2bfloat16_rn(x).bits; }

// Two numbers in one register; the first operand is the higher half.
template <auto to_16_bits>
void convert_pair(Thread& thread, const Instruction& i) {
  const uint32_t high = to_16_bits(thread.read<float>(i.operands[1])),
                 low = to_16_bits(thread.read<float>(i.operands[2]));
  thread.write<uint32_t>(i.operands[0], high << 16 | low);
}

// --- vectors ---------------------------------------------------------------------------------------------------------

// mov d, {a, b, ...}: the first is the lowest part.
template <typename Part, int count>
void pack(Thread& thread, const Instruction& i) {
  uint64_t whole = 0;
  for (int k = 0; k < count; ++k) {
    whole |= static_cast<uint64_t>(thread.read<Part>(i.operands[1 + k])) << (8 * sizeof(Part) * k);
  }
  thread.write<uint64_t>(i.operands[0], whole);
}

// mov {a, b, ...}, d
template <typename Part, int count>
void unpack(Thread& thread, const Instruction& i) {
  const uint64_t whole = thread.read<uint64_t>(i.operands[count]);
  for (int k = 0; k < count; ++k) thread.write<Part>(i.operands[k], static_cast<Part>(whole >> (8 * sizeof(Part) * k)));
}

}  // namespace

void add_conversion(InstructionSet& set) {
  add_integer<int8_t>(set, "s8");
  add_integer<uint8_t>(set, "u8");
  add_integer<int16_t>(set, "s16");
  add_integer<uint16_t>(set, "u16");
  add_integer<int32_t>(set, "s32");
  add_integer<uint32_t>(set, "u32");
  add_integer<int64_t>(set, "s64");
  add_integer<uint64_t>(set, "u64");
  add_rounding<float>(set, "f32");
  add_rounding<double>(set, "f64");
  set["cvt.f64.f32/2"] = convert<double, float, [](float x) { return static_cast<double>(x); }>;
  set["cvt.rn.f32.f64/2"] = convert<float, double, [](double x) { return static_cast<float>(x); }>;
  set["cvt.sat.f32.f32/2"] = convert<float, float, [](float x) { return 0 < x ? std::fmin(x, 1.0f) : 0.0f; }>;

  set["cvt.f32.f16/2"] = convert<float, uint16_t, from_half>;
  set["cvt.f32.bf16/2"] = convert<float, uint16_t, from_bfloat>;
  set["cvt.rn.f16.f32/2"] = convert<uint16_t, float, to_half>;
  set["cvt.rn.bf16.f32/2"] = convert<uint16_t, float, to_bfloat>;
  set["cvt.rn.f16x2.f32/3"] = convert_pair<to_half>;
  set["cvt.rn.bf16x2.f32/3"] = convert_pair<to_bfloat>;

  set["pack.b32/3"] = pack<uint16_t, 2>;
  set["pack.b64/3"] = pack<uint32_t, 2>;
  set["pack.b64/5"] = pack<uint16_t, 4>;
  set["unpack.b32/3"] = unpack<uint16_t, 2>;
  set["unpack.b64/3"] = unpack<uint32_t, 2>;
  set["unpack.b64/5"] = unpack<uint16_t, 4>;
}

}  // namespace cuda_emulator::ptx
