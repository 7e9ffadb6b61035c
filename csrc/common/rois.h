// What the operators that pool features of RoIs share.
#pragma once

#include <cmath>
#include <type_traits>
#include <utility>

#include "tensor.h"

namespace fastrcnn {

// Calls function.template operator()<Feature>() with the feature type of the tensor; the 16-bit types have other names
// on CUDA than on the CPU.
template <typename Half, typename BFloat16, typename Function>
auto dispatch_features(ScalarType dtype, Function&& function) {
  switch (dtype) {
    case ScalarType::Double: return function.template operator()<double>();
    case ScalarType::Half: return function.template operator()<Half>();
    case ScalarType::BFloat16: return function.template operator()<BFloat16>();
    default: return function.template operator()<float>();
  }
}

// The type of the coordinates of RoIs, and of sums, for a feature type of the CPU.
template <typename Feature>
using Coordinate = std::conditional_t<std::is_same_v<Feature, double>, double, float>;

// rois: [R, 5]. On the CPU the index of every RoI is checked; on CUDA, where looking would mean waiting, RoIs with an
// index that does not exist pool to zero.
template <typename T>
void check_image_indices(const T* rois, int64_t num_rois, int64_t num_images) {
  for (int64_t r = 0; r < num_rois; ++r) {
    const T index = rois[r * 5];
    FASTRCNN_CHECK(index >= T(-1) && index < static_cast<T>(num_images) && index == std::floor(index), "rois[", r,
                   ", 0]: expected the index of one of ", num_images, " images (or -1 for padding), got ", index);
  }
}

}  // namespace fastrcnn
