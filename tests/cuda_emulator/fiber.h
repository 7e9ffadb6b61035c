// Fibers: stacks that one CPU thread switches between.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_emulator {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 << 10;  // its frames are larger
#else
constexpr size_t kStackBytes = 128 << 10;
#endif

struct Fiber {
  char* stack = nullptr;  // null: the stack that the program started with
  void* stack_pointer = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
#if !defined(__x86_64__)
  ucontext_t context;
#endif
};

// A fiber that, when first switched to, calls entry(), which must not return. Its stack has a guard page below and is
// never freed.
Fiber* new_fiber(void (*entry)());

// Makes the fiber start anew; what was on its stack is forgotten, without destructors.
void restart_fiber(Fiber* fiber, void (*entry)());

void switch_fiber(Fiber* from, Fiber* to);

// To be called first in entry().
void fiber_entered();

bool is_fiber_stack(const void* address);

}  // namespace cuda_emulator
