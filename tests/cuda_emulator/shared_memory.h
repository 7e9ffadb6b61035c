// The shared memory of the block that runs; it is reused from block to block.
#pragma once

#include <cstddef>

namespace cuda_emulator {

// As long as it lives a launch has shared memory: what its kernel declares, and `dynamic_bytes`.
struct SharedMemory {
  explicit SharedMemory(size_t dynamic_bytes);
  ~SharedMemory();
};

// With 0xFF, so that what a kernel reads before it is written is NaN or -1.
void fill_shared_memory();

}  // namespace cuda_emulator
