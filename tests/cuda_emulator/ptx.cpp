#include "ptx.h"

#include <alloca.h>
#include <dlfcn.h>

#include <cstdio>
#include <stdexcept>
#include <unordered_map>

#include "fiber.h"
#include "launch_kernel.h"

namespace cuda_emulator::ptx {
namespace {

struct Kernel {
  std::vector<Instruction> instructions;
  std::vector<uint64_t> slots;
  std::vector<Range> parameters, shared;
  size_t static_shared_bytes, local_bytes, parameter_bytes = 0;
};

std::unordered_map<const void*, Kernel> kernels;  // by the address of the kernel that g++ compiled

const InstructionSet& instruction_set() {
  static const InstructionSet set = [] {
    InstructionSet set;
    add_arithmetic(set);
    add_bits(set);
    add_conversion(set);
    add_memory(set);
    add_threads(set);
    return set;
  }();
  return set;
}

Kernel load(const KernelText& text) {
  Kernel kernel;
  kernel.instructions.assign(text.instructions, text.instructions + text.num_instructions);
  for (Instruction& instruction : kernel.instructions) {
    const std::string name = std::string(instruction.opcode) + "/" + std::to_string(instruction.num_operands);
    const auto found = instruction_set().find(name);
    if (found == instruction_set().end()) {
      throw std::runtime_error("PTX: no instruction " + name + ", needed at " + instruction.file + ":" +
                               std::to_string(instruction.line));
    }
    instruction.execute = found->second;
  }
  kernel.slots.assign(text.slots, text.slots + text.num_slots);
  kernel.parameters.assign(text.parameters, text.parameters + text.num_parameters);
  kernel.shared.assign(text.shared, text.shared + text.num_shared);
  kernel.static_shared_bytes = text.static_shared_bytes;
  kernel.local_bytes = text.local_bytes;
  for (const Range& parameter : kernel.parameters) kernel.parameter_bytes = parameter.end;
  const size_t frame = kernel.slots.size() * sizeof(uint64_t) + kernel.local_bytes;
  if (frame > kStackBytes - (32 << 10)) {
    throw std::runtime_error("PTX: expected a thread of up to " + std::to_string(kStackBytes - (32 << 10)) +
                             " bytes, got " + std::to_string(frame));
  }
  return kernel;
}

void set_fixed_slots(uint64_t* slots, const char* parameters, const char* local) {
  slots[kTrue] = 1;
  slots[kParameters] = reinterpret_cast<uint64_t>(parameters);
  slots[kLocal] = reinterpret_cast<uint64_t>(local);
  uint64_t* slot = slots + kThreadIndex;
  for (const unsigned index : {threadIdx.x, threadIdx.y, threadIdx.z, blockDim.x, blockDim.y, blockDim.z, blockIdx.x,
                               blockIdx.y, blockIdx.z, gridDim.x, gridDim.y, gridDim.z}) {
    *slot++ = index;
  }
  *slot = static_cast<unsigned>(current_lane());
}

void run_thread(const Kernel& kernel, const std::vector<Range>& shared, const char* parameters) {
  const size_t slot_bytes = kernel.slots.size() * sizeof(uint64_t);
  char* frame = static_cast<char*>(alloca(slot_bytes + kernel.local_bytes + 16));  // on the stack of the fiber
  char* local = frame + (16 - reinterpret_cast<uintptr_t>(frame) % 16) % 16;
  auto* slots = reinterpret_cast<uint64_t*>(local + kernel.local_bytes);
  std::memcpy(slots, kernel.slots.data(), slot_bytes);
  set_fixed_slots(slots, parameters, local);
  Thread thread(slots, shared);
  while (thread.next < kernel.instructions.size()) {
    const Instruction& instruction = kernel.instructions[thread.next++];
    if (thread.read<bool>(instruction.guard) != instruction.unless) instruction.execute(thread, instruction);
  }
}

void run(const char* what, const Kernel& kernel, dim3 grid, dim3 block, size_t dynamic_bytes,
         const void* const* parameters) {
  alignas(16) char memory[4096];  // as much as a kernel may have
  if (kernel.parameter_bytes > sizeof memory) throw std::runtime_error("PTX: expected up to 4096 bytes of parameters");
  for (const Range& range : kernel.parameters) {
    std::memcpy(memory + range.begin, *parameters++, range.end - range.begin);
  }
  // Dynamic shared memory lies behind the static.
  const size_t shared_bytes = kernel.static_shared_bytes + dynamic_bytes;
  std::vector<Range> shared = kernel.shared;
  shared.push_back({static_cast<uint32_t>(kernel.static_shared_bytes), static_cast<uint32_t>(shared_bytes)});
  launch(what, grid, block, shared_bytes, [&] { run_thread(kernel, shared, memory); });
}

// --- the seam to Python ----------------------------------------------------------------------------------------------

// Asked for a kernel at its first launch, by where its code lies in this library; calls cuda_emulator_ptx_define.
using Find = void (*)(const void* kernel, uint64_t offset);
Find find = nullptr;
std::string refusal;  // why the last definition failed

void run_in_place_of(const char* what, const void* address, dim3 grid, dim3 block, size_t shared_bytes,
                     const void* const* parameters) {
  auto kernel = kernels.find(address);
  if (kernel == kernels.end()) {
    Dl_info library;
    if (dladdr(address, &library) == 0) throw std::runtime_error("PTX: a kernel outside of any library");
    refusal.clear();
    find(address, static_cast<const char*>(address) - static_cast<const char*>(library.dli_fbase));
    kernel = kernels.find(address);
    if (kernel == kernels.end()) throw std::runtime_error(std::string(what) + ": " + refusal);
  }
  run(what, kernel->second, grid, block, shared_bytes, parameters);
}

}  // namespace

void Thread::fail_at(const Instruction& at, const std::string& what) {
  const uint32_t number = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  fail(what + " by " + at.opcode + " of " + thread_name(current_thread(), number) + " at " + at.file + ":" +
       std::to_string(at.line));
}

}  // namespace cuda_emulator::ptx

#define EXPORTED extern "C" __attribute__((visibility("default")))

// From now on kernels run from PTX, found by this function; null: as g++ compiled them, and what was found is
// forgotten.
EXPORTED void cuda_emulator_ptx_find(cuda_emulator::ptx::Find function) {
  using namespace cuda_emulator;
  ptx::find = function;
  ptx::kernels.clear();
  kernel_replacement = function == nullptr ? nullptr : &ptx::run_in_place_of;
}

// The PTX of a kernel; where it cannot be executed, its launch raises the reason.
EXPORTED void cuda_emulator_ptx_define(const void* kernel, const cuda_emulator::ptx::KernelText* text) {
  using namespace cuda_emulator::ptx;
  try {
    kernels[kernel] = load(*text);
  } catch (const std::exception& error) {
    kernels.erase(kernel);
    refusal = error.what();
  }
}

EXPORTED void cuda_emulator_ptx_refuse(const char* reason) { cuda_emulator::ptx::refusal = reason; }

// Runs PTX that belongs to no kernel of this library; error: room for 4096 characters, empty where all was well.
EXPORTED void cuda_emulator_ptx_run(const cuda_emulator::ptx::KernelText* text, unsigned blocks, unsigned threads,
                                    uint64_t shared_bytes, const void* const* parameters, char* error) {
  using namespace cuda_emulator;
  *error = 0;
  try {
    ptx::run("PTX", ptx::load(*text), dim3(blocks), dim3(threads), shared_bytes, parameters);
  } catch (const std::exception& e) {
    std::snprintf(error, 4096, "%s", e.what());
  }
}
