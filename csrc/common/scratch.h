// One piece of scratch memory divided into arrays. Free of torch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastrcnn {

// Arrays follow one another, each aligned to 256 bytes. With null memory it only adds up how much is needed.
class ScratchMemory {
 public:
  explicit ScratchMemory(void* memory) : base_(reinterpret_cast<uintptr_t>(memory)) {}

  template <typename T>
  void take(T*& pointer, int64_t count) {
    pointer = reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
  }

  size_t bytes() const { return bytes_; }

 private:
  uintptr_t base_;
  size_t bytes_ = 0;
};

}  // namespace fastrcnn
