// Runs the threads of a kernel on one CPU thread: each CUDA thread is a fiber that gives up the CPU where it must wait
// for others, at a barrier or a warp operation. Blocks run one after another, so a kernel in which one block waits for
// another never ends.
//
// The environment variable CUDA_EMULATOR_SCHEDULE, read at each launch, says in which order blocks and threads run:
// "in_order" (also without it), "reversed", or a number, the seed of a random order.
//
// An error of the kernel (threads that wait for each other, barriers that only some threads reach, a warp mask that is
// not what happens) ends the launch with std::runtime_error that names kernel, threads and source lines.
#pragma once

#include <functional>
#include <string>

#include "language.h"

namespace cuda_emulator {

// Where in the source a thread waits.
struct Place {
  const char* file;
  int line;
};

// As the last parameters of a function: where it was called.
#define CUDA_EMULATOR_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

enum class WarpOp { kSync, kShuffle, kBallot, kMatch };

void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

// --- for the thread that runs now ------------------------------------------------------------------------------------

void* dynamic_shared();

// Waits for all threads of the block; returns for how many of them `predicate` was true.
int barrier(bool predicate, Place place);

// Waits for the lanes of `mask`. kShuffle: the value of lane `source`; kBallot: the lanes whose value is not 0; kMatch:
// the lanes whose value is that of this one.
uint64_t warp_op(WarpOp op, unsigned mask, uint64_t value, int source, Place place);

int current_lane();

// --- for the race detector -------------------------------------------------------------------------------------------

bool in_kernel();
int current_thread();
bool is_shared_memory(const void* address);
bool is_thread_stack(const void* address);
std::string thread_name(int thread, uint32_t block);  // block: number in launch order of x, y, z

// Ends the launch with this error.
[[noreturn]] void fail(const std::string& error);

}  // namespace cuda_emulator
