#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <stdexcept>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Saves the registers that a function must keep on the present stack, and loads those of the other one.
extern "C" void cuda_emulator_switch_stack(void** save_stack_pointer, void* stack_pointer);
asm(R"(
.text
.local cuda_emulator_switch_stack
.type cuda_emulator_switch_stack,@function
cuda_emulator_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulator_switch_stack, .-cuda_emulator_switch_stack
)");
#endif

namespace cuda_emulator {
namespace {

constexpr size_t kGuardBytes = 4096;
constexpr size_t kMaxFibers = 1024;  // threads per block

// All stacks lie in one range of addresses, so that what is on a stack can be told.
char* stacks = nullptr;
size_t num_stacks = 0;

#if defined(__SANITIZE_ADDRESS__)
const void* main_stack = nullptr;
size_t main_stack_bytes = 0;
#endif

char* new_stack() {
  constexpr size_t step = kStackBytes + kGuardBytes;
  if (stacks == nullptr) {
    void* memory =
        mmap(nullptr, kMaxFibers * step, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("CUDA emulator: no memory for the stacks of threads");
    stacks = static_cast<char*>(memory);
  }
  if (num_stacks == kMaxFibers) throw std::runtime_error("CUDA emulator: more fibers than threads");
  char* guard = stacks + num_stacks++ * step;
  mprotect(guard, kGuardBytes, PROT_NONE);
  return guard + kGuardBytes;
}

}  // namespace

bool is_fiber_stack(const void* address) {
  const auto offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(stacks);
  return stacks != nullptr && offset < kMaxFibers * (kStackBytes + kGuardBytes);
}

void restart_fiber(Fiber* fiber, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(fiber->stack, kStackBytes);
#endif
  fiber->fake_stack = nullptr;
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(fiber->stack + kStackBytes);
  *--top = nullptr;  // where entry() would return to
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers
  fiber->stack_pointer = top;
#else
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack;
  fiber->context.uc_stack.ss_size = kStackBytes;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, entry, 0);
#endif
}

Fiber* new_fiber(void (*entry)()) {
  auto* fiber = new Fiber;
  fiber->stack = new_stack();
  restart_fiber(fiber, entry);
  return fiber;
}

void switch_fiber(Fiber* from, Fiber* to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from->fake_stack, to->stack == nullptr ? main_stack : to->stack,
                                 to->stack == nullptr ? main_stack_bytes : kStackBytes);
#endif
#if defined(__x86_64__)
  cuda_emulator_switch_stack(&from->stack_pointer, to->stack_pointer);
#else
  swapcontext(&from->context, &to->context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* left_stack;
  size_t left_bytes;
  __sanitizer_finish_switch_fiber(from->fake_stack, &left_stack, &left_bytes);
  if (from->stack != nullptr) {  // only the program's own stack switches to a fiber
    main_stack = left_stack;
    main_stack_bytes = left_bytes;
  }
#endif
}

void fiber_entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_stack_bytes);
#endif
}

}  // namespace cuda_emulator
