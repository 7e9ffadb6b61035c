// The device and the stream that a CUDA operator works on.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "launch.h"
#include "tensor.h"

namespace fastrcnn {

#if defined(FASTRCNN_CUDA_EMULATOR)

struct CurrentStream {
  explicit CurrentStream(const Tensor&) {}
  operator cudaStream_t() const { return nullptr; }
};

#else

// For as long as it lives the tensor's device is the current one; converts to the stream that is current there.
class CurrentStream {
 public:
  explicit CurrentStream(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  operator cudaStream_t() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

#endif

}  // namespace fastrcnn
