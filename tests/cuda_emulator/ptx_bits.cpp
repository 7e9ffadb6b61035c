// Logic, shifts, and the bits and bytes of registers.
#include <algorithm>

#include "ptx_operands.h"

namespace cuda_emulator::ptx {
namespace {

template <typename U>
U mask_of(uint32_t length) {
  return length >= 8 * sizeof(U) ? static_cast<U>(~U(0)) : static_cast<U>((U(1) << length) - 1);
}

// The bits of a, in b from `start` on for `length` bits.
template <typename U>
void insert_bits(Thread& thread, const Instruction& i) {
  const U a = thread.read<U>(i.operands[1]), b = thread.read<U>(i.operands[2]);
  const uint32_t start = thread.read<uint8_t>(i.operands[3]), length = thread.read<uint8_t>(i.operands[4]);
  const bool inside = start < 8 * sizeof(U);
  const U mask = inside ? static_cast<U>(mask_of<U>(length) << start) : 0;
  thread.write<U>(i.operands[0], (b & ~mask) | (inside ? (a << start) & mask : 0));
}

// The bits of a from `start` on for `length` bits; of a signed type, extended by the last of them or of a.
template <typename T>
void extract_bits(Thread& thread, const Instruction& i) {
  const T a = thread.read<T>(i.operands[1]);
  const int start = thread.read<uint8_t>(i.operands[2]), length = thread.read<uint8_t>(i.operands[3]);
  constexpr int kBits = 8 * sizeof(T);
  const auto bit = [&](int number) { return a >> std::min(number, kBits - 1) & 1; };
  const bool sign = std::is_signed_v<T> && length > 0 && bit(start + length - 1);
  std::make_unsigned_t<T> result = 0;
  for (int k = 0; k < kBits; ++k) {
    const bool set = k < length && start + k < kBits ? bit(start + k) : sign;
    result |= static_cast<std::make_unsigned_t<T>>(set) << k;
  }
  thread.write<T>(i.operands[0], static_cast<T>(result));
}

// Four bytes chosen from the eight of a and b; the highest bit of a selector says: its sign instead.
uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selectors) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int k = 0; k < 4; ++k) {
    const uint32_t selector = selectors >> 4 * k & 15;
    uint32_t byte = bytes >> 8 * (selector & 7) & 255;
    if (selector & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * k;
  }
  return result;
}

// The function of three bits whose truth table is the number `table`, for each bit of a, b and c.
void logic(Thread& thread, const Instruction& i) {
  const uint32_t a = thread.read<uint32_t>(i.operands[1]), b = thread.read<uint32_t>(i.operands[2]);
  const uint32_t c = thread.read<uint32_t>(i.operands[3]), table = thread.read<uint32_t>(i.operands[4]);
  uint32_t result = 0;
  for (int k = 0; k < 32; ++k) {
    const uint32_t row = (a >> k & 1) << 2 | (b >> k & 1) << 1 | (c >> k & 1);
    result |= (table >> row & 1) << k;
  }
  thread.write<uint32_t>(i.operands[0], result);
}

template <bool left, bool wrap>
uint32_t funnel_shift(uint32_t low, uint32_t high, uint32_t n) {
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  n = wrap ? n & 31 : std::min(n, 32u);
  return static_cast<uint32_t>(left ? both << n >> 32 : both >> n);
}

template <typename U>
void add_bits_of(InstructionSet& set, const std::string& type) {
  constexpr uint32_t kBits = 8 * sizeof(U);
  set["and." + type + "/3"] = binary<U, U, [](U a, U b) { return static_cast<U>(a & b); }>;
  set["or." + type + "/3"] = binary<U, U, [](U a, U b) { return static_cast<U>(a | b); }>;
  set["xor." + type + "/3"] = binary<U, U, [](U a, U b) { return static_cast<U>(a ^ b); }>;
  set["not." + type + "/2"] = unary<U, U, [](U a) { return static_cast<U>(~a); }>;
  set["shl." + type + "/3"] = shift<U, [](U a, uint32_t n) { return static_cast<U>(n < kBits ? a << n : 0); }>;
  set["shr." + type + "/3"] = shift<U, [](U a, uint32_t n) { return static_cast<U>(n < kBits ? a >> n : 0); }>;
  if constexpr (kBits >= 32) {
    set["bfi." + type + "/5"] = insert_bits<U>;
    set["bfe.u" + type.substr(1) + "/4"] = extract_bits<U>;
    set["bfe.s" + type.substr(1) + "/4"] = extract_bits<std::make_signed_t<U>>;
    set["popc." + type + "/2"] = unary<uint32_t, U, [](U a) { return __builtin_popcountll(a); }>;
    set["clz." + type + "/2"] =
        unary<uint32_t, U, [](U a) { return a == 0 ? kBits : __builtin_clzll(a) - (64 - kBits); }>;
    // The number of the highest bit that is set, or how far it is from the top; all ones if there is none.
    set["bfind.u" + type.substr(1) + "/2"] =
        unary<uint32_t, U, [](U a) { return a == 0 ? ~0u : static_cast<uint32_t>(63 - __builtin_clzll(a)); }>;
    set["bfind.shiftamt.u" + type.substr(1) + "/2"] =
        unary<uint32_t, U, [](U a) { return a == 0 ? ~0u : static_cast<uint32_t>(__builtin_clzll(a) - (64 - kBits)); }>;
    set["brev." + type + "/2"] = unary<U, U, [](U a) {
      U reversed = 0;
      for (uint32_t k = 0; k < kBits; ++k) reversed |= (a >> k & 1) << (kBits - 1 - k);
      return reversed;
    }>;
  }
}

}  // namespace

void add_bits(InstructionSet& set) {
  add_bits_of<uint16_t>(set, "b16");
  add_bits_of<uint32_t>(set, "b32");
  add_bits_of<uint64_t>(set, "b64");
  set["prmt.b32/4"] = ternary<uint32_t, uint32_t, permute_bytes>;
  set["lop3.b32/5"] = logic;
  set["shf.l.wrap.b32/4"] = ternary<uint32_t, uint32_t, funnel_shift<true, true>>;
  set["shf.r.wrap.b32/4"] = ternary<uint32_t, uint32_t, funnel_shift<false, true>>;
  set["shf.l.clamp.b32/4"] = ternary<uint32_t, uint32_t, funnel_shift<true, false>>;
  set["shf.r.clamp.b32/4"] = ternary<uint32_t, uint32_t, funnel_shift<false, false>>;
}

}  // namespace cuda_emulator::ptx
