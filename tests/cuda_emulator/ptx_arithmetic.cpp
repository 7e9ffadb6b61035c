// Arithmetic and comparisons. IEEE 754 as the instructions demand it: +, -, *, /, sqrt and fma are rounded once,
// to the nearest unless their name says otherwise; the approximations of exp2, log2 and 1/sqrt are the CPU's, which are
// not those of any GPU.
#include <algorithm>
#include <cfenv>
#include <cmath>

#include "ptx_operands.h"

namespace cuda_emulator::ptx {
namespace {

void copy(Thread& thread, const Instruction& i) {
  thread.write<uint64_t>(i.operands[0], thread.read<uint64_t>(i.operands[1]));
}

void select(Thread& thread, const Instruction& i) {
  const int chosen = thread.read<bool>(i.operands[3]) ? 1 : 2;
  thread.write<uint64_t>(i.operands[0], thread.read<uint64_t>(i.operands[chosen]));
}

// --- comparisons -----------------------------------------------------------------------------------------------------

enum class Join { kNone, kAnd, kOr, kXor };

// setp p, a, b (, c) or p|q, a, b (, c): p is the comparison, joined with the predicate c; q its opposite, joined too.
template <typename T, auto compare, Join join, int both>
void set_predicate(Thread& thread, const Instruction& i) {
  const int* operands = i.operands + both;
  const bool result = compare(thread.read<T>(operands[1]), thread.read<T>(operands[2]));
  const bool c = join != Join::kNone && thread.read<bool>(operands[3]);
  const auto joined = [&](bool value) {
    return join == Join::kNone ? value : join == Join::kAnd ? value && c : join == Join::kOr ? value || c : value != c;
  };
  thread.write<bool>(i.operands[0], joined(result));
  if (both) thread.write<bool>(i.operands[1], joined(!result));
}

template <typename T, auto compare>
void add_comparison(InstructionSet& set, const std::string& name, const std::string& type) {
  const std::string start = "setp." + name;
  set[start + "." + type + "/3"] = set_predicate<T, compare, Join::kNone, 0>;
  set[start + "." + type + "/4"] = set_predicate<T, compare, Join::kNone, 1>;
  set[start + ".and." + type + "/4"] = set_predicate<T, compare, Join::kAnd, 0>;
  set[start + ".and." + type + "/5"] = set_predicate<T, compare, Join::kAnd, 1>;
  set[start + ".or." + type + "/4"] = set_predicate<T, compare, Join::kOr, 0>;
  set[start + ".or." + type + "/5"] = set_predicate<T, compare, Join::kOr, 1>;
  set[start + ".xor." + type + "/4"] = set_predicate<T, compare, Join::kXor, 0>;
  set[start + ".xor." + type + "/5"] = set_predicate<T, compare, Join::kXor, 1>;
}

template <typename T>
void add_equality(InstructionSet& set, const std::string& type) {
  add_comparison<T, [](T a, T b) { return a == b; }>(set, "eq", type);
  add_comparison<T, [](T a, T b) { return a < b || b < a; }>(set, "ne", type);  // false where one is NaN
}

template <typename T>
void add_comparisons(InstructionSet& set, const std::string& type) {
  add_equality<T>(set, type);
  add_comparison<T, [](T a, T b) { return a < b; }>(set, "lt", type);
  add_comparison<T, [](T a, T b) { return a <= b; }>(set, "le", type);
  add_comparison<T, [](T a, T b) { return b < a; }>(set, "gt", type);
  add_comparison<T, [](T a, T b) { return a >= b; }>(set, "ge", type);
}

// The comparisons that are true where a number is NaN, and whether one is.
template <typename T>
void add_unordered_comparisons(InstructionSet& set, const std::string& type) {
  add_comparison<T, [](T a, T b) { return !(a < b || a > b); }>(set, "equ", type);
  add_comparison<T, [](T a, T b) { return a != b; }>(set, "neu", type);
  add_comparison<T, [](T a, T b) { return !(a >= b); }>(set, "ltu", type);
  add_comparison<T, [](T a, T b) { return !(a > b); }>(set, "leu", type);
  add_comparison<T, [](T a, T b) { return !(a <= b); }>(set, "gtu", type);
  add_comparison<T, [](T a, T b) { return !(a < b); }>(set, "geu", type);
  add_comparison<T, [](T a, T b) { return a == a && b == b; }>(set, "num", type);
  add_comparison<T, [](T a, T b) { return a != a || b != b; }>(set, "nan", type);
}

// --- integers --------------------------------------------------------------------------------------------------------

// All of them wrap around. U: the unsigned type of the size of T; Wide: of twice the size.
template <typename T, typename Wide>
void add_integer(InstructionSet& set, const std::string& type) {
  using U = std::make_unsigned_t<T>;
  constexpr int kBits = 8 * sizeof(T);
  set["add." + type + "/3"] = binary<T, T, [](T a, T b) { return static_cast<T>(U(a) + U(b)); }>;
  set["sub." + type + "/3"] = binary<T, T, [](T a, T b) { return static_cast<T>(U(a) - U(b)); }>;
  set["mul.lo." + type + "/3"] = binary<T, T, [](T a, T b) { return static_cast<T>(uint64_t(a) * uint64_t(b)); }>;
  set["mul.hi." + type + "/3"] = binary<T, T, [](T a, T b) { return static_cast<T>(Wide(a) * Wide(b) >> kBits); }>;
  set["mad.lo." + type + "/4"] =
      ternary<T, T, [](T a, T b, T c) { return static_cast<T>(uint64_t(a) * uint64_t(b) + uint64_t(c)); }>;
  set["mad.hi." + type + "/4"] =
      ternary<T, T, [](T a, T b, T c) { return static_cast<T>(U(Wide(a) * Wide(b) >> kBits) + U(c)); }>;
  if constexpr (sizeof(T) < 8) {
    set["mul.wide." + type + "/3"] = binary<Wide, T, [](T a, T b) { return static_cast<Wide>(Wide(a) * Wide(b)); }>;
    set["mad.wide." + type + "/4"] =
        ternary<Wide, T, [](T a, T b, Wide c) { return static_cast<Wide>(uint64_t(a) * uint64_t(b) + uint64_t(c)); }>;
  }
  // A GPU does not trap: x / 0 has all bits set, x % 0 is x, and the smallest number divided by -1 is itself.
  constexpr auto kMinusOne = static_cast<T>(-1);
  set["div." + type + "/3"] = binary<T, T, [](T a, T b) {
    return b == 0                                  ? kMinusOne
           : std::is_signed_v<T> && b == kMinusOne ? static_cast<T>(U(0) - U(a))
                                                   : static_cast<T>(a / b);
  }>;
  set["rem." + type + "/3"] = binary<T, T, [](T a, T b) {
    return b == 0 ? a : std::is_signed_v<T> && b == kMinusOne ? T(0) : static_cast<T>(a % b);
  }>;
  set["min." + type + "/3"] = binary<T, T, [](T a, T b) { return std::min(a, b); }>;
  set["max." + type + "/3"] = binary<T, T, [](T a, T b) { return std::max(a, b); }>;
  set["neg." + type + "/2"] = unary<T, T, [](T a) { return static_cast<T>(U(0) - U(a)); }>;
  set["abs." + type + "/2"] = unary<T, T, [](T a) { return a < 0 ? static_cast<T>(U(0) - U(a)) : a; }>;
  set["shr." + type + "/3"] =
      shift<T, [](T a, uint32_t n) { return static_cast<T>(n < kBits ? a >> n
                                                           : a < 0   ? -1
                                                                     : 0); }>;
  add_comparisons<T>(set, type);
}

// --- floating point --------------------------------------------------------------------------------------------------

// The function, rounded towards `mode`. The compiler does not know that the mode matters, so it may not look inside.
template <typename T, int mode, auto function, typename... Operands>
__attribute__((noinline)) T rounded(Operands... operands) {
  const int before = std::fegetround();
  std::fesetround(mode);
  volatile T result = function(static_cast<volatile Operands&>(operands)...);
  std::fesetround(before);
  return result;
}

template <typename T, int mode>
void add_directed(InstructionSet& set, const std::string& type) {
  set["add." + type + "/3"] =
      binary<T, T, [](T a, T b) { return rounded<T, mode, [](T a, T b) { return a + b; }>(a, b); }>;
  set["mul." + type + "/3"] =
      binary<T, T, [](T a, T b) { return rounded<T, mode, [](T a, T b) { return a * b; }>(a, b); }>;
  set["fma." + type + "/4"] = ternary<T, T, [](T a, T b, T c) {
    return rounded<T, mode, [](T a, T b, T c) { return std::fma(a, b, c); }>(a, b, c);
  }>;
}

// The number where the other is NaN; -0 is less than +0.
template <typename T>
T smaller(T a, T b) {
  if (a != a || b != b) return a != a ? b : a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}

template <typename T>
void add_float(InstructionSet& set, const std::string& type) {
  for (const std::string& name : {type, "rn." + type}) {  // as nvcc writes them if it may not contract: with .rn
    set["add." + name + "/3"] = binary<T, T, [](T a, T b) { return a + b; }>;
    set["sub." + name + "/3"] = binary<T, T, [](T a, T b) { return a - b; }>;
    set["mul." + name + "/3"] = binary<T, T, [](T a, T b) { return a * b; }>;
  }
  set["div.rn." + type + "/3"] = binary<T, T, [](T a, T b) { return a / b; }>;
  set["rcp.rn." + type + "/2"] = unary<T, T, [](T a) { return T(1) / a; }>;
  set["sqrt.rn." + type + "/2"] = unary<T, T, [](T a) { return std::sqrt(a); }>;
  set["fma.rn." + type + "/4"] = ternary<T, T, [](T a, T b, T c) { return std::fma(a, b, c); }>;
  set["min." + type + "/3"] = binary<T, T, [](T a, T b) { return smaller(a, b); }>;
  set["max." + type + "/3"] = binary<T, T, [](T a, T b) { return -smaller(-a, -b); }>;
  set["neg." + type + "/2"] = unary<T, T, [](T a) { return -a; }>;
  set["abs." + type + "/2"] = unary<T, T, [](T a) { return std::fabs(a); }>;
  set["copysign." + type + "/3"] = binary<T, T, [](T a, T b) { return std::copysign(b, a); }>;
  add_directed<T, FE_TOWARDZERO>(set, "rz." + type);
  add_directed<T, FE_DOWNWARD>(set, "rm." + type);
  add_directed<T, FE_UPWARD>(set, "rp." + type);
  add_comparisons<T>(set, type);
  add_unordered_comparisons<T>(set, type);
}

float flush_to_zero(float a) { return std::fabs(a) < 0x1p-126f ? std::copysign(0.0f, a) : a; }

void add_approximations(InstructionSet& set) {
  const Execute exp2 = unary<float, float, [](float a) { return std::exp2(a); }>;
  const Execute log2 = unary<float, float, [](float a) { return std::log2(a); }>;
  const Execute rsqrt = unary<float, float, [](float a) { return 1.0f / std::sqrt(a); }>;
  set["ex2.approx.f32/2"] = exp2;
  set["lg2.approx.f32/2"] = log2;
  set["rsqrt.approx.f32/2"] = rsqrt;
  set["ex2.approx.ftz.f32/2"] = unary<float, float, [](float a) { return flush_to_zero(std::exp2(flush_to_zero(a))); }>;
  set["lg2.approx.ftz.f32/2"] = unary<float, float, [](float a) { return std::log2(flush_to_zero(a)); }>;
  set["rsqrt.approx.ftz.f32/2"] = unary<float, float, [](float a) { return 1.0f / std::sqrt(flush_to_zero(a)); }>;
}

}  // namespace

void add_arithmetic(InstructionSet& set) {
  const std::string kinds[] = {"b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64", "f32", "f64", "pred"};
  for (const std::string& type : kinds) {
    set["mov." + type + "/2"] = copy;
    set["selp." + type + "/4"] = select;
  }
  add_integer<int16_t, int32_t>(set, "s16");
  add_integer<uint16_t, uint32_t>(set, "u16");
  add_integer<int32_t, int64_t>(set, "s32");
  add_integer<uint32_t, uint64_t>(set, "u32");
  add_integer<int64_t, __int128>(set, "s64");
  add_integer<uint64_t, unsigned __int128>(set, "u64");
  add_equality<uint16_t>(set, "b16");
  add_equality<uint32_t>(set, "b32");
  add_equality<uint64_t>(set, "b64");
  set["and.pred/3"] = binary<bool, bool, [](bool a, bool b) { return a && b; }>;
  set["or.pred/3"] = binary<bool, bool, [](bool a, bool b) { return a || b; }>;
  set["xor.pred/3"] = binary<bool, bool, [](bool a, bool b) { return a != b; }>;
  set["not.pred/2"] = unary<bool, bool, [](bool a) { return !a; }>;
  add_float<float>(set, "f32");
  add_float<double>(set, "f64");
  add_approximations(set);
}

}  // namespace cuda_emulator::ptx
