#include "races.h"

#if defined(CUDA_EMULATOR_RACES)

#include <dlfcn.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "scheduler.h"

namespace cuda_emulator::races {
namespace {

enum class Kind : uint8_t { kRead, kWrite, kAtomic };

// Something a thread did to some bytes of four.
struct Access {
  const void* code;
  uint32_t block;
  uint32_t epoch;  // barriers that the block had passed
  uint32_t time;   // __syncwarps that the lane had passed
  uint16_t thread;
  Kind kind;
  uint8_t bytes;  // one bit for each; 0: no access
};

// The last accesses to four consecutive bytes. More than fit: one is forgotten, so a race can be missed, but none is
// invented.
struct Cell {
  uintptr_t address = 0;  // divided by 4
  uint32_t launch = 0;    // of another launch: empty
  std::array<Access, 4> accesses;
};

// All cells, by address: open addressing.
std::vector<Cell> cells(1 << 16);
size_t num_used;
uint32_t launch_number;

uint32_t block_number, epoch;
int num_threads;
// seen[t][l]: how many __syncwarps of lane l of its warp thread t knows to have happened; seen[t][own lane] is its own.
std::vector<std::array<uint32_t, 32>> seen;

size_t slot_of(uintptr_t address) {
  size_t slot = (address * 0x9E3779B97F4A7C15u >> 20) & (cells.size() - 1);
  while (cells[slot].launch == launch_number && cells[slot].address != address) slot = (slot + 1) & (cells.size() - 1);
  return slot;
}

Cell& cell_at(uintptr_t address) {
  if (num_used * 2 > cells.size()) {
    std::vector<Cell> old(cells.size() * 2);
    old.swap(cells);
    for (const Cell& cell : old) {
      if (cell.launch == launch_number) cells[slot_of(cell.address)] = cell;
    }
  }
  Cell& cell = cells[slot_of(address)];
  if (cell.launch != launch_number) {
    cell = Cell{address, launch_number, {}};
    ++num_used;
  }
  return cell;
}

// Whether what an access did is complete, and seen, before `thread` goes on.
bool is_before(const Access& access, int thread, bool shared) {
  if (access.block != block_number) return shared;  // blocks have shared memory of their own
  if (access.thread == thread || access.epoch < epoch) return true;
  return access.thread / 32 == thread / 32 && seen[thread][access.thread % 32] > access.time;
}

// "file:line" of an instruction, from the debug information: where the kernel says it, not the emulator's headers.
std::string source_of(const void* code) {
  Dl_info info;
  if (!dladdr(code, &info)) return "?";
  const auto offset = static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase) - 1;
  char command[4096], line[1024];
  std::snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
                static_cast<size_t>(offset));
  std::string source = "?";
  FILE* output = popen(command, "r");
  if (output == nullptr) return source;
  while (std::fgets(line, sizeof line, output) != nullptr) {
    source = line;
    source.erase(source.find_first_of(" \n"));
    if (source.find("/cuda_emulator/intrinsics.h:") == std::string::npos) break;
  }
  pclose(output);
  return source;
}

std::string describe(const Access& access) {
  static const char* const kVerbs[] = {"reads", "writes", "changes atomically"};
  return thread_name(access.thread, access.block) + " " + kVerbs[static_cast<int>(access.kind)] + " at " +
         source_of(access.code);
}

void touch_cell(uintptr_t address, Access now, bool shared) {
  Cell& cell = cell_at(address);
  Access* place = nullptr;
  for (Access& before : cell.accesses) {
    if (before.bytes == 0) {
      if (place == nullptr) place = &before;
      continue;
    }
    const bool ordered = is_before(before, now.thread, shared);
    const bool harmless = before.kind == now.kind && now.kind != Kind::kWrite;
    if ((before.bytes & now.bytes) && !ordered && !harmless) {
      fail(std::string("race in ") + (shared ? "shared" : "global") + " memory: " + describe(before) + ", " +
           describe(now) + ", and nothing orders the two");
    }
    const bool replaced = before.thread == now.thread && before.block == now.block && before.kind == now.kind &&
                          (before.bytes & ~now.bytes) == 0;
    const bool over = before.block == block_number ? before.epoch < epoch : shared;
    if (replaced || over) place = &before;
  }
  if (place == nullptr) place = &cell.accesses[(now.thread ^ address) % cell.accesses.size()];
  *place = now;
}

void touch(const void* memory, size_t bytes, Kind kind, const void* code) {
  if (!in_kernel() || is_thread_stack(memory) || bytes == 0) return;
  const bool shared = is_shared_memory(memory);
  const int thread = current_thread();
  const auto begin = reinterpret_cast<uintptr_t>(memory), end = begin + bytes;
  for (uintptr_t address = begin / 4; address * 4 < end; ++address) {
    uint8_t mask = 0;
    for (unsigned byte = 0; byte < 4; ++byte) {
      if (address * 4 + byte >= begin && address * 4 + byte < end) mask |= static_cast<uint8_t>(1u << byte);
    }
    touch_cell(address,
               {code, block_number, epoch, seen[thread][thread % 32], static_cast<uint16_t>(thread), kind, mask},
               shared);
  }
}

}  // namespace

void launch_begins(int threads_per_block) {
  num_threads = threads_per_block;
  num_used = 0;
  ++launch_number;
}

void block_begins(unsigned block) {
  block_number = block;
  epoch = 0;
  seen.assign(num_threads, {});
}

void barrier_passed() { ++epoch; }

void warp_synchronised(int first_thread, unsigned mask) {
  std::array<uint32_t, 32> all{};
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    auto& own = seen[first_thread + lane];
    ++own[lane];
    for (int other = 0; other < 32; ++other) all[other] = all[other] > own[other] ? all[other] : own[other];
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) seen[first_thread + lane] = all;
  }
}

void atomic_access(const void* address, size_t bytes, const void* code) { touch(address, bytes, Kind::kAtomic, code); }

}  // namespace cuda_emulator::races

// --- what -fsanitize=thread calls ------------------------------------------------------------------------------------

using cuda_emulator::races::Kind;
using cuda_emulator::races::touch;

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_read_range(void* p, unsigned long n) { touch(p, n, Kind::kRead, __builtin_return_address(0)); }
void __tsan_write_range(void* p, unsigned long n) { touch(p, n, Kind::kWrite, __builtin_return_address(0)); }

#define CUDA_EMULATOR_ACCESS(n)                                                                       \
  void __tsan_read##n(void* p) { touch(p, n, Kind::kRead, __builtin_return_address(0)); }             \
  void __tsan_write##n(void* p) { touch(p, n, Kind::kWrite, __builtin_return_address(0)); }           \
  void __tsan_unaligned_read##n(void* p) { touch(p, n, Kind::kRead, __builtin_return_address(0)); }   \
  void __tsan_unaligned_write##n(void* p) { touch(p, n, Kind::kWrite, __builtin_return_address(0)); } \
  void __tsan_volatile_read##n(void* p) { touch(p, n, Kind::kRead, __builtin_return_address(0)); }    \
  void __tsan_volatile_write##n(void* p) { touch(p, n, Kind::kWrite, __builtin_return_address(0)); }
CUDA_EMULATOR_ACCESS(1)
CUDA_EMULATOR_ACCESS(2)
CUDA_EMULATOR_ACCESS(4)
CUDA_EMULATOR_ACCESS(8)
CUDA_EMULATOR_ACCESS(16)

// Atomics of the host's code (reference counts, locks): done, not watched.
#define CUDA_EMULATOR_HOST_ATOMIC(bits, T)                                                                          \
  T __tsan_atomic##bits##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }           \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }           \
  T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_add(volatile T* p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_sub(volatile T* p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_and(volatile T* p, T v, int) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_or(volatile T* p, T v, int) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }   \
  T __tsan_atomic##bits##_fetch_xor(volatile T* p, T v, int) { return __atomic_fetch_xor(p, v, __ATOMIC_SEQ_CST); } \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* expected, T v, int, int) {                    \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                  \
  }                                                                                                                 \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* expected, T v, int, int) {                      \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                  \
  }
CUDA_EMULATOR_HOST_ATOMIC(8, unsigned char)
CUDA_EMULATOR_HOST_ATOMIC(16, unsigned short)
CUDA_EMULATOR_HOST_ATOMIC(32, unsigned)
CUDA_EMULATOR_HOST_ATOMIC(64, unsigned long)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

}  // extern "C"

#endif
