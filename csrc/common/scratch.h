// One piece of scratch memory divided into arrays. Free of torch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "host_device.h"

namespace fastrcnn {

// Arrays follow one another, each aligned to 256 bytes. With null memory it only adds up how much is needed. In the
// emulator of the tests there is a gap behind each array, and AddressSanitizer reports who touches it.
class ScratchMemory {
 public:
  explicit ScratchMemory(void* memory) : base_(reinterpret_cast<uintptr_t>(memory)) {}

  template <typename T>
  void take(T*& pointer, int64_t count) {
    pointer = reinterpret_cast<T*>(base_ + bytes_);
    const size_t used = bytes_ + static_cast<size_t>(count) * sizeof(T);
    bytes_ = (used + kGap + 255) / 256 * 256;
#if defined(FASTRCNN_CUDA_EMULATOR)
    if (base_ != 0) ::cuda_emulator::guard(pointer + count, bytes_ - used);
#endif
  }

  size_t bytes() const { return bytes_; }

 private:
#if defined(FASTRCNN_CUDA_EMULATOR)
  static constexpr size_t kGap = 256;
#else
  static constexpr size_t kGap = 0;
#endif
  uintptr_t base_;
  size_t bytes_ = 0;
};

}  // namespace fastrcnn
