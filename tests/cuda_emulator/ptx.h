// PTX, executed: what nvcc made of a kernel, instruction by instruction, on the scheduler of the emulator.
//
// ptx_text.py reads the text and numbers what an instruction may name: every register and every constant is a slot of
// 64 bits in a thread. An instruction is then the function that does it (ptx_*.cpp) and the numbers of its slots; its
// name is without the modifiers that say only how fast or how visible, and is followed by how many operands it has, so
// that what is not known here is refused by name.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "scheduler.h"

namespace cuda_emulator::ptx {

class Thread;
struct Instruction;
using Execute = void (*)(Thread& thread, const Instruction& instruction);

constexpr int kMaxOperands = 10;

// The first slots of a thread, in the order of FIXED in ptx_text.py; those from kThreadIndex on are %tid.x, .y, .z,
// %ntid, %ctaid, %nctaid and %laneid.
enum FixedSlot { kTrue, kParameters, kLocal, kNowhere, kThreadIndex, kNumFixed = kThreadIndex + 13 };

// --- as ctypes passes it (ptx.py) ------------------------------------------------------------------------------------

struct Instruction {
  const char* opcode;
  const char* file;  // of the .cu
  int line;
  int guard;  // the slot of a predicate: the instruction is done if it is not `unless`
  int unless;
  int num_operands;
  int operands[kMaxOperands];  // slots; of a branch, the number of an instruction
  Execute execute;

  Place place() const { return {file, line}; }
};

struct Range {
  uint32_t begin, end;
};

struct KernelText {
  const Instruction* instructions;
  const uint64_t* slots;    // what they hold when a thread starts: the constants
  const Range* parameters;  // where each lies in parameter memory
  const Range* shared;      // the arrays of static shared memory
  int num_instructions, num_slots, num_parameters, num_shared;
  int static_shared_bytes, local_bytes;
};

// --- the instructions ------------------------------------------------------------------------------------------------

// By name and number of operands, as "add.s32/3".
using InstructionSet = std::map<std::string, Execute>;
void add_arithmetic(InstructionSet& set);
void add_bits(InstructionSet& set);
void add_conversion(InstructionSet& set);
void add_memory(InstructionSet& set);
void add_threads(InstructionSet& set);

// --- the thread that runs --------------------------------------------------------------------------------------------

class Thread {
 public:
  Thread(uint64_t* slots, const std::vector<Range>& shared) : slots_(slots), shared_(shared) {}

  // The value of a slot as T: its lowest bits.
  template <typename T>
  T read(int slot) const {
    if constexpr (std::is_same_v<T, bool>) return slots_[slot] & 1;
    T value;
    std::memcpy(&value, &slots_[slot], sizeof value);
    return value;
  }

  // A signed integer is extended with its sign, as a register wider than the type of the instruction demands.
  template <typename T>
  void write(int slot, T value) {
    if constexpr (std::is_integral_v<T>) {
      slots_[slot] = static_cast<uint64_t>(value);
    } else {
      slots_[slot] = 0;
      std::memcpy(&slots_[slot], &value, sizeof value);
    }
  }

  // [slot + offset], for `bytes`: aligned, or the launch fails.
  char* address(int slot, int offset, unsigned bytes, const Instruction& at) const {
    const uint64_t address = slots_[slot] + slots_[offset];
    if (address % bytes != 0) fail_at(at, "a misaligned access of " + std::to_string(bytes) + " bytes");
    return reinterpret_cast<char*>(address);
  }

  // The same in shared memory, where an address is an offset: within one array, or the launch fails.
  char* shared_address(int slot, int offset, unsigned bytes, const Instruction& at) const {
    const uint64_t address = static_cast<uint32_t>(slots_[slot] + slots_[offset]);
    if (address % bytes != 0) fail_at(at, "a misaligned access of " + std::to_string(bytes) + " bytes");
    for (const Range& array : shared_) {
      if (address >= array.begin && address + bytes <= array.end) return static_cast<char*>(dynamic_shared()) + address;
    }
    fail_at(at, "an access past the end of shared memory");
  }

  [[noreturn]] static void fail_at(const Instruction& at, const std::string& what);

  size_t next = 0;  // instruction

 private:
  uint64_t* slots_;
  const std::vector<Range>& shared_;
};

}  // namespace cuda_emulator::ptx
