// Loads, stores and atomics. Addresses of global, local and parameter memory are those of the CPU; those of shared
// memory are offsets, which cvta makes addresses of.
#include "intrinsics.h"
#include "ptx.h"

namespace cuda_emulator::ptx {
namespace {

template <bool shared>
char* address(const Thread& thread, const Instruction& i, int operand, unsigned bytes) {
  const int slot = i.operands[operand], offset = i.operands[operand + 1];
  return shared ? thread.shared_address(slot, offset, bytes, i) : thread.address(slot, offset, bytes, i);
}

// ld {d...}, [a + offset]
template <typename T, int width, bool shared>
void load(Thread& thread, const Instruction& i) {
  const char* from = address<shared>(thread, i, width, width * sizeof(T));
  T values[width];
  std::memcpy(values, from, sizeof values);
  for (int k = 0; k < width; ++k) thread.write<T>(i.operands[k], values[k]);
}

// st [a + offset], {b...}
template <typename T, int width, bool shared>
void store(Thread& thread, const Instruction& i) {
  char* to = address<shared>(thread, i, 0, width * sizeof(T));
  T values[width];
  for (int k = 0; k < width; ++k) values[k] = thread.read<T>(i.operands[2 + k]);
  std::memcpy(to, values, sizeof values);
}

// atom d, [a + offset], b; a vector is not atomic as a whole, each of its elements is.
template <typename T, int width, bool shared, auto operation>
void atomic(Thread& thread, const Instruction& i) {
  T* to = reinterpret_cast<T*>(address<shared>(thread, i, width, width * sizeof(T)));
  T before[width];
  for (int k = 0; k < width; ++k) {
    const T value = thread.read<T>(i.operands[width + 2 + k]);
    before[k] = read_modify_write(to + k, [&](T old) { return operation(old, value); });
  }
  for (int k = 0; k < width; ++k) thread.write<T>(i.operands[k], before[k]);
}

// red: the same without d.
template <typename T, int width, bool shared, auto operation>
void reduce(Thread& thread, const Instruction& i) {
  T* to = reinterpret_cast<T*>(address<shared>(thread, i, 0, width * sizeof(T)));
  for (int k = 0; k < width; ++k) {
    const T value = thread.read<T>(i.operands[2 + k]);
    read_modify_write(to + k, [&](T old) { return operation(old, value); });
  }
}

// atom.cas d, [a + offset], expected, b
template <typename T, bool shared>
void compare_and_swap(Thread& thread, const Instruction& i) {
  T* to = reinterpret_cast<T*>(address<shared>(thread, i, 1, sizeof(T)));
  const T expected = thread.read<T>(i.operands[3]), value = thread.read<T>(i.operands[4]);
  thread.write<T>(i.operands[0], read_modify_write(to, [&](T old) { return old == expected ? value : old; }));
}

// --- for every type and space ----------------------------------------------------------------------------------------

template <typename T, bool shared>
void add_load_and_store(InstructionSet& set, const std::string& space, const std::string& type) {
  set["ld" + space + "." + type + "/3"] = load<T, 1, shared>;
  set["ld" + space + ".v2." + type + "/4"] = load<T, 2, shared>;
  set["st" + space + "." + type + "/3"] = store<T, 1, shared>;
  set["st" + space + ".v2." + type + "/4"] = store<T, 2, shared>;
  if constexpr (sizeof(T) <= 4) {
    set["ld" + space + ".v4." + type + "/6"] = load<T, 4, shared>;
    set["st" + space + ".v4." + type + "/6"] = store<T, 4, shared>;
  }
}

template <bool shared>
void add_loads_and_stores(InstructionSet& set, const std::string& space) {
  add_load_and_store<int8_t, shared>(set, space, "s8");
  add_load_and_store<int16_t, shared>(set, space, "s16");
  add_load_and_store<int32_t, shared>(set, space, "s32");
  add_load_and_store<int64_t, shared>(set, space, "s64");
  add_load_and_store<float, shared>(set, space, "f32");
  add_load_and_store<double, shared>(set, space, "f64");
  for (const char* kind : {"u", "b"}) {
    add_load_and_store<uint8_t, shared>(set, space, kind + std::string("8"));
    add_load_and_store<uint16_t, shared>(set, space, kind + std::string("16"));
    add_load_and_store<uint32_t, shared>(set, space, kind + std::string("32"));
    add_load_and_store<uint64_t, shared>(set, space, kind + std::string("64"));
  }
}

template <typename T, int width, bool shared, auto operation>
void add_atomic(InstructionSet& set, const std::string& space, const std::string& name) {
  set["atom" + space + "." + name + "/" + std::to_string(2 * width + 2)] = atomic<T, width, shared, operation>;
  set["red" + space + "." + name + "/" + std::to_string(width + 2)] = reduce<T, width, shared, operation>;
}

constexpr auto kAdd = [](auto a, auto b) { return a + b; };
constexpr auto kMax = [](auto a, auto b) { return a > b ? a : b; };
constexpr auto kMin = [](auto a, auto b) { return a < b ? a : b; };

template <bool shared>
void add_atomics(InstructionSet& set, const std::string& space) {
  add_atomic<uint32_t, 1, shared, kAdd>(set, space, "add.u32");
  add_atomic<uint32_t, 1, shared, kAdd>(set, space, "add.s32");
  add_atomic<uint64_t, 1, shared, kAdd>(set, space, "add.u64");
  add_atomic<float, 1, shared, kAdd>(set, space, "add.f32");
  add_atomic<float, 2, shared, kAdd>(set, space, "add.v2.f32");
  add_atomic<float, 4, shared, kAdd>(set, space, "add.v4.f32");
  add_atomic<double, 1, shared, kAdd>(set, space, "add.f64");
  add_atomic<int32_t, 1, shared, kMax>(set, space, "max.s32");
  add_atomic<uint32_t, 1, shared, kMax>(set, space, "max.u32");
  add_atomic<int64_t, 1, shared, kMax>(set, space, "max.s64");
  add_atomic<uint64_t, 1, shared, kMax>(set, space, "max.u64");
  add_atomic<int32_t, 1, shared, kMin>(set, space, "min.s32");
  add_atomic<uint32_t, 1, shared, kMin>(set, space, "min.u32");
  add_atomic<int64_t, 1, shared, kMin>(set, space, "min.s64");
  add_atomic<uint64_t, 1, shared, kMin>(set, space, "min.u64");
  add_atomic<uint32_t, 1, shared, [](uint32_t a, uint32_t b) { return a | b; }>(set, space, "or.b32");
  add_atomic<uint64_t, 1, shared, [](uint64_t a, uint64_t b) { return a | b; }>(set, space, "or.b64");
  add_atomic<uint32_t, 1, shared, [](uint32_t a, uint32_t b) { return a & b; }>(set, space, "and.b32");
  add_atomic<uint64_t, 1, shared, [](uint64_t a, uint64_t b) { return a & b; }>(set, space, "and.b64");
  add_atomic<uint32_t, 1, shared, [](uint32_t, uint32_t b) { return b; }>(set, space, "exch.b32");
  add_atomic<uint64_t, 1, shared, [](uint64_t, uint64_t b) { return b; }>(set, space, "exch.b64");
  set["atom" + space + ".cas.b16/5"] = compare_and_swap<uint16_t, shared>;
  set["atom" + space + ".cas.b32/5"] = compare_and_swap<uint32_t, shared>;
  set["atom" + space + ".cas.b64/5"] = compare_and_swap<uint64_t, shared>;
}

}  // namespace

void add_memory(InstructionSet& set) {
  for (const char* space : {"", ".global", ".local", ".param"}) add_loads_and_stores<false>(set, space);
  for (const char* space : {"", ".global"}) add_atomics<false>(set, space);
  add_loads_and_stores<true>(set, ".shared");
  add_atomics<true>(set, ".shared");

  const Execute same = [](Thread& thread, const Instruction& i) {
    thread.write<uint64_t>(i.operands[0], thread.read<uint64_t>(i.operands[1]));
  };
  for (const char* space : {"global", "local", "param"}) {
    set[std::string("cvta.") + space + ".u64/2"] = set[std::string("cvta.to.") + space + ".u64/2"] = same;
  }
  set["cvta.shared.u64/2"] = [](Thread& thread, const Instruction& i) {
    const auto memory = reinterpret_cast<uint64_t>(dynamic_shared());
    thread.write<uint64_t>(i.operands[0], memory + thread.read<uint64_t>(i.operands[1]));
  };
  set["cvta.to.shared.u64/2"] = [](Thread& thread, const Instruction& i) {
    const auto memory = reinterpret_cast<uint64_t>(dynamic_shared());
    thread.write<uint64_t>(i.operands[0], thread.read<uint64_t>(i.operands[1]) - memory);
  };
}

}  // namespace cuda_emulator::ptx
