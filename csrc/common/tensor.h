// What every operator uses of the LibTorch stable ABI, and the checks of its arguments.
//
// Every message reads "<argument>: expected <what>, got <what came>", in the names of the Python signature.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace fastrcnn {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws the message as it stands, without the place in this source that STD_TORCH_CHECK would put before it.
#define FASTRCNN_CHECK(condition, ...)                                         \
  do {                                                                         \
    if (!(condition)) throw std::runtime_error(::fastrcnn::text(__VA_ARGS__)); \
  } while (false)

template <typename Part>
std::string part_text(const Part& part) {
  if constexpr (std::is_floating_point_v<Part>) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%g", static_cast<double>(part));
    return digits;
  } else if constexpr (std::is_arithmetic_v<Part>) {
    return std::to_string(part);
  } else {
    return std::string(part);
  }
}

// The parts one after the other. Without a stream: where this library was compiled by another g++ than torch, numbers
// written to one crash, for each has brought its own C++ runtime.
template <typename... Parts>
std::string text(const Parts&... parts) {
  return (std::string() + ... + part_text(parts));
}

inline std::string shape_text(const Tensor& tensor) {
  std::string sizes;
  for (int64_t d = 0; d < tensor.dim(); ++d) sizes += (d > 0 ? ", " : "") + std::to_string(tensor.size(d));
  return "[" + sizes + "]";
}

// `expected`: the shape in words, for the message; -1 in `shape` is any size.
inline void check_shape(const Tensor& tensor, const char* name, const char* expected,
                        std::initializer_list<int64_t> shape) {
  bool right = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t d = 0;
  for (const int64_t size : shape) {
    if (!right) break;
    right = size < 0 || tensor.size(d) == size;
    ++d;
  }
  FASTRCNN_CHECK(right, name, ": expected shape ", expected, ", got ", shape_text(tensor));
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Short: return "int16";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Bool: return "bool";
    default: return torch::headeronly::toString(dtype);
  }
}

inline void check_dtype(const Tensor& tensor, const char* name, ScalarType dtype) {
  FASTRCNN_CHECK(tensor.scalar_type() == dtype, name, ": expected dtype ", dtype_name(dtype), ", got ",
                 dtype_name(tensor.scalar_type()));
}

// Boxes, scores and deltas are float32, or float64 for gradient checks.
inline void check_coordinates(const Tensor& tensor, const char* name) {
  const ScalarType dtype = tensor.scalar_type();
  FASTRCNN_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name,
                 ": expected dtype float32 or float64, got ", dtype_name(dtype));
}

inline void check_same_device(const Tensor& tensor, const char* name, const Tensor& other, const char* other_name) {
  FASTRCNN_CHECK(tensor.device() == other.device(), name, " and ", other_name,
                 ": expected both on the same device, got ", tensor.is_cuda() ? "cuda" : "cpu", " and ",
                 other.is_cuda() ? "cuda" : "cpu");
}

// In T, the type it is used in: a positive number that is 0 or infinite there is an error too.
template <typename T>
void check_positive(double value, const char* name, const char* expected = "a positive number") {
  const T number = static_cast<T>(value);
  if (number > T(0) && number < std::numeric_limits<T>::infinity()) return;
  const bool lost = value > 0 && value < std::numeric_limits<double>::infinity();
  throw std::runtime_error(text(name, ": expected ", expected, ", got ", value,
                                lost ? text(" (", number, sizeof(T) == 4 ? " in float32)" : " in float64)") : ""));
}

inline void check_number(double value, const char* name) {
  FASTRCNN_CHECK(value == value, name, ": expected a number, got ", value);
}

inline void check_threshold(double value, const char* name) {
  FASTRCNN_CHECK(value >= 0.0 && value <= 1.0, name, ": expected a number in [0, 1], got ", value);
}

// Dense in memory with the channels innermost, and not also dense in NCHW order (a single channel or cell is both).
inline bool is_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4 || tensor.is_contiguous()) return false;
  int64_t stride = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (tensor.size(d) != 1 && tensor.stride(d) != stride) return false;
    stride *= tensor.size(d);
  }
  return true;
}

inline Tensor to_channels_last(const Tensor& tensor) {
  return torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast);
}

// In the emulator of the tests new memory is full of NaN, so that a number that no kernel writes is noticed.
inline Tensor unwritten(Tensor tensor) {
#if defined(FASTRCNN_CUDA_EMULATOR)
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  if (bytes > 0) std::memset(tensor.mutable_data_ptr(), 0xFF, static_cast<size_t>(bytes));
#endif
  return tensor;
}

inline Tensor channels_last_tensor(const Tensor& like, std::vector<int64_t> shape, ScalarType dtype) {
  return unwritten(
      torch::stable::empty(shape, dtype, std::nullopt, like.device(), std::nullopt, MemoryFormat::ChannelsLast));
}

// The tensor itself if it is dense in the order of its sizes; that is asked first, for the call into PyTorch costs as
// much as the work of a thousand boxes.
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(dense(*tensor)) : std::nullopt;
}

// Dense in the order of the sizes, not filled, on the device of `like`. The plain C function: torch::stable::new_empty
// goes through the dispatcher, which takes longer than the work of a thousand boxes.
inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= shape[d] > 0 ? shape[d] : 1;
  }
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const auto type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                                                  type, device_type, device_index, &handle));
  return unwritten(Tensor(handle));
}

}  // namespace fastrcnn
