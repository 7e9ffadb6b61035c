#include "scheduler.h"

#include <cstdio>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <vector>

#include "fiber.h"
#include "launch_kernel.h"
#include "races.h"
#include "schedule.h"
#include "shared_memory.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_emulator {

KernelReplacement kernel_replacement = nullptr;

namespace {

constexpr int kMaxThreads = 1024;                // per block
constexpr size_t kMaxDynamicShared = 48u << 10;  // what every launch may ask for

enum class State { kNotStarted, kRunning, kAtBarrier, kInWarpOp, kExited };

struct Thread {
  uint3 index;
  State state;
  Fiber* fiber;
  Place place;  // where it waits
  // The warp operation it waits for.
  WarpOp op;
  unsigned mask;
  uint64_t value, result;
  int source;
};

// The block that runs.
struct Block {
  std::vector<Thread> threads;
  std::vector<int> order;  // in which threads start
  size_t num_started;
  int num_exited;
  int num_at_barrier, num_true, barrier_result;
  std::deque<int> released;  // have waited and may go on
  std::string error;

  int size() const { return static_cast<int>(threads.size()); }
};

Block block;
Schedule schedule;
const std::function<void()>* thread_function;
Fiber main_fiber;
Fiber* running = &main_fiber;
int thread_now = -1;
std::vector<Fiber*> fibers, idle_fibers;

void set_error(const std::string& error) {
  if (block.error.empty()) block.error = error;
}

std::string describe(int t) {
  static const char* const kStates[] = {"not started", "running", "in __syncthreads", "in a warp operation", "exited"};
  const Thread& thread = block.threads[t];
  const uint32_t number = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  std::string text = thread_name(t, number) + " is " + kStates[static_cast<int>(thread.state)];
  if (thread.state == State::kAtBarrier || thread.state == State::kInWarpOp) {
    text += std::string(" at ") + thread.place.file + ":" + std::to_string(thread.place.line);
  }
  if (thread.state == State::kInWarpOp) {
    char mask[32];
    std::snprintf(mask, sizeof mask, " with mask %08x", thread.mask);
    text += mask;
  }
  return text;
}

bool same_place(const Place& a, const Place& b) {
  return a.line == b.line && (a.file == b.file || !std::strcmp(a.file, b.file));
}

void switch_to(Fiber* to) {
  Fiber* from = running;
  running = to;
  switch_fiber(from, to);
}

// Gives the CPU to the scheduler until this thread may go on.
void wait() {
  const int t = thread_now;
  switch_to(&main_fiber);
  thread_now = t;
  threadIdx = block.threads[t].index;
}

// Lets everybody go on if all that have not exited are at the barrier.
void release_barrier() {
  if (block.num_at_barrier == 0 || block.num_at_barrier + block.num_exited < block.size()) return;
  int first = -1;
  for (int t = 0; t < block.size(); ++t) {
    Thread& thread = block.threads[t];
    if (thread.state != State::kAtBarrier) continue;
    if (first < 0) first = t;
    if (!same_place(thread.place, block.threads[first].place)) {
      set_error("threads are at different barriers: " + describe(first) + ", " + describe(t));
    }
  }
  if (block.num_exited > 0) {
    set_error("threads are missing at a barrier: " + std::to_string(block.num_exited) + " of " +
              std::to_string(block.size()) + " have exited, " + describe(first));
  }
  for (const int t : block.order) {
    if (block.threads[t].state != State::kAtBarrier) continue;
    block.threads[t].state = State::kRunning;
    block.released.push_back(t);
  }
  block.barrier_result = block.num_true;
  block.num_at_barrier = block.num_true = 0;
  races::barrier_passed();
}

// What a fiber does: takes threads that have not started and runs them to their end, one after the other, until one has
// to wait; that one keeps the fiber.
[[noreturn]] void fiber_main() {
  fiber_entered();
  for (;;) {
    while (block.num_started < block.threads.size() && block.error.empty()) {
      const int t = block.order[block.num_started++];
      block.threads[t].state = State::kRunning;
      block.threads[t].fiber = running;
      thread_now = t;
      threadIdx = block.threads[t].index;
      (*thread_function)();
      block.threads[thread_now].state = State::kExited;
      ++block.num_exited;
      release_barrier();
      if (schedule.kind == Schedule::kRandom && !block.released.empty()) break;  // let the scheduler choose
    }
    idle_fibers.push_back(running);
    switch_to(&main_fiber);
  }
}

void start_thread() {
  if (idle_fibers.empty()) {
    fibers.push_back(new_fiber(&fiber_main));
    idle_fibers.push_back(fibers.back());
  }
  Fiber* fiber = idle_fibers.back();
  idle_fibers.pop_back();
  switch_to(fiber);
}

void continue_thread() {
  const size_t i = schedule.pick(block.released.size());
  const int t = block.released[i];
  block.released.erase(block.released.begin() + static_cast<std::ptrdiff_t>(i));
  switch_to(block.threads[t].fiber);
}

void report_deadlock() {
  std::string text = "threads wait for each other:";
  int told = 0;
  for (int t = 0; t < block.size() && told < 6; ++t) {
    if (block.threads[t].state == State::kExited) continue;
    text += "\n  " + describe(t);
    ++told;
  }
  set_error(text + "\n  " + std::to_string(block.num_exited) + " of " + std::to_string(block.size()) +
            " threads have exited");
}

void run_block(size_t number) {
  blockIdx.x = number % gridDim.x;
  blockIdx.y = number / gridDim.x % gridDim.y;
  blockIdx.z = number / gridDim.x / gridDim.y;
  for (Thread& thread : block.threads) thread.state = State::kNotStarted;
  block.order = schedule.order(block.size());
  block.num_started = 0;
  block.num_exited = block.num_at_barrier = block.num_true = 0;
  block.released.clear();
  fill_shared_memory();
  races::block_begins(static_cast<unsigned>(number));
  while (block.num_exited < block.size() && block.error.empty()) {
    const bool can_start = block.num_started < block.threads.size(), can_continue = !block.released.empty();
    if (can_start && (!can_continue || schedule.kind != Schedule::kRandom || schedule.coin())) {
      start_thread();
    } else if (can_continue) {
      continue_thread();
    } else {
      report_deadlock();
    }
  }
}

}  // namespace

void launch(const char* kernel, dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()>& thread) {
  const uint64_t num_threads = uint64_t(threads.x) * threads.y * threads.z;
  const uint64_t num_blocks = uint64_t(grid.x) * grid.y * grid.z;
  const std::string name = std::string("CUDA emulator: ") + kernel + ": ";
  if (in_kernel()) throw std::runtime_error(name + "a kernel launches a kernel");
  if (num_threads < 1 || num_threads > kMaxThreads || threads.z > 64) {
    throw std::runtime_error(name + "expected 1 to 1024 threads per block, got " + std::to_string(num_threads));
  }
  if (num_blocks < 1 || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535) {
    throw std::runtime_error(name + "expected a grid of up to 2147483647 x 65535 x 65535 blocks, got " +
                             std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z));
  }
  if (shared_bytes > kMaxDynamicShared) {
    throw std::runtime_error(name + "expected up to " + std::to_string(kMaxDynamicShared) +
                             " bytes of dynamic shared memory, got " + std::to_string(shared_bytes));
  }
  schedule = Schedule::from_environment();
  gridDim = grid;
  blockDim = threads;
  thread_function = &thread;
  block.error.clear();
  block.threads.assign(num_threads, Thread{});
  for (unsigned t = 0; t < num_threads; ++t) {
    block.threads[t].index = {t % threads.x, t / threads.x % threads.y, t / threads.x / threads.y};
  }
  const SharedMemory memory(shared_bytes);
  races::launch_begins(block.size());
  for (const uint64_t number : schedule.order(num_blocks)) {
    if (!block.error.empty()) break;
    run_block(number);
  }
  thread_now = -1;
  if (block.error.empty()) return;
  idle_fibers = fibers;
  for (Fiber* fiber : fibers) restart_fiber(fiber, &fiber_main);
  throw std::runtime_error(name + block.error);
}

// --- for the thread that runs now ------------------------------------------------------------------------------------

int current_lane() { return thread_now % warpSize; }

int barrier(bool predicate, Place place) {
  Thread& me = block.threads[thread_now];
  me.state = State::kAtBarrier;
  me.place = place;
  ++block.num_at_barrier;
  block.num_true += predicate;
  release_barrier();
  wait();
  return block.barrier_result;
}

namespace {

// The lanes of the mask that exist: the last warp of a block may be short.
unsigned existing_lanes(unsigned mask, int first) {
  const int count = std::min(warpSize, block.size() - first);
  return count < warpSize ? mask & ((1u << count) - 1) : mask;
}

template <typename Function>
void for_each_lane(unsigned lanes, int first, const Function& function) {
  for (int lane = 0; lane < warpSize; ++lane) {
    if (lanes >> lane & 1) function(lane, block.threads[first + lane]);
  }
}

void complete_warp_op(WarpOp op, unsigned lanes, int first) {
  uint64_t not_zero = 0;
  for_each_lane(lanes, first, [&](int lane, Thread& thread) { not_zero |= uint64_t(thread.value != 0) << lane; });
  for_each_lane(lanes, first, [&](int, Thread& thread) {
    thread.result = 0;
    if (op == WarpOp::kBallot) thread.result = not_zero;
    if (op == WarpOp::kShuffle && (lanes >> thread.source & 1)) {
      thread.result = block.threads[first + thread.source].value;
    }
    if (op == WarpOp::kMatch) {
      for_each_lane(lanes, first, [&](int lane, const Thread& other) {
        thread.result |= uint64_t(other.value == thread.value) << lane;
      });
    }
  });
  if (op == WarpOp::kSync) races::warp_synchronised(first, lanes);
}

}  // namespace

uint64_t warp_op(WarpOp op, unsigned mask, uint64_t value, int source, Place place) {
  const int t = thread_now, lane = current_lane(), first = t - lane;
  Thread& me = block.threads[t];
  me.state = State::kInWarpOp;
  me.op = op;
  me.mask = mask;
  me.value = value;
  me.source = source;
  me.place = place;
  if (!(mask >> lane & 1)) fail("a lane is not in the mask of its warp operation: " + describe(t));
  if (op == WarpOp::kShuffle && !(mask >> source & 1)) {
    fail("a shuffle reads lane " + std::to_string(source) + ", which is not in the mask: " + describe(t));
  }
  const unsigned lanes = existing_lanes(mask, first);
  bool complete = true;
  for_each_lane(lanes, first, [&](int, const Thread& other) {
    complete = complete && other.state == State::kInWarpOp && other.mask == mask && other.op == op &&
               same_place(other.place, place);
  });
  if (complete) {
    complete_warp_op(op, lanes, first);
    for_each_lane(lanes, first, [&](int other, Thread& thread) {
      thread.state = State::kRunning;
      if (first + other != t || schedule.kind == Schedule::kRandom) block.released.push_back(first + other);
    });
    if (schedule.kind != Schedule::kRandom) return me.result;
  }
  wait();
  return me.result;
}

// --- for the race detector -------------------------------------------------------------------------------------------

bool in_kernel() { return thread_now >= 0; }

int current_thread() { return thread_now; }

bool is_thread_stack(const void* address) { return is_fiber_stack(address); }

std::string thread_name(int thread, uint32_t number) {
  const auto text = [](unsigned x, unsigned y, unsigned z) {
    return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
  };
  const uint3& index = block.threads[thread].index;
  return "thread " + text(index.x, index.y, index.z) + " of block " +
         text(number % gridDim.x, number / gridDim.x % gridDim.y, number / gridDim.x / gridDim.y);
}

void fail(const std::string& error) {
  set_error(error);
  switch_to(&main_fiber);
  std::abort();  // nobody continues a thread after an error
}

}  // namespace cuda_emulator
