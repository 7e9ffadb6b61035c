// Finds data races: two threads touch the same bytes, at least one writes, not both atomically, and nothing orders
// them.
//
// What orders: __syncthreads within the block, __syncwarp among its lanes. Not shuffles and votes, which exchange
// values but say nothing about memory; not atomics and fences; and between blocks of a launch nothing. Launches are
// ordered. This is stricter than a run: a race is reported although the schedule at hand gave the right result.
//
// How: in this variant (CUDA_EMULATOR_RACES) the kernels are compiled with -fsanitize=thread, so that the compiler puts
// a call before each access to memory. ThreadSanitizer's library is not linked: the functions called are those of
// races.cpp, which know blocks, barriers and warps.
#pragma once

#include <cstddef>

namespace cuda_emulator::races {

#if defined(CUDA_EMULATOR_RACES)
void launch_begins(int threads_per_block);
void block_begins(unsigned block);
void barrier_passed();
void warp_synchronised(int first_thread, unsigned mask);
void atomic_access(const void* address, size_t bytes, const void* code);  // code: the instruction
#else
inline void launch_begins(int) {}
inline void block_begins(unsigned) {}
inline void barrier_passed() {}
inline void warp_synchronised(int, unsigned) {}
inline void atomic_access(const void*, size_t, const void*) {}
#endif

}  // namespace cuda_emulator::races
