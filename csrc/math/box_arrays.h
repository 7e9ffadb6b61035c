// Boxes as separate arrays, over which loops are vectorised.
#pragma once

#include <cstdint>
#include <vector>

#include "box.h"

namespace fastrcnn {

template <typename T>
struct BoxArrays {
  const T *x1, *y1, *x2, *y2, *area;
  int64_t count;
};

// A copy of boxes in this form.
template <typename T>
class SplitBoxes {
 public:
  SplitBoxes(const Box<T>* boxes, int64_t n) : numbers_(static_cast<size_t>(5 * n)), n_(n) {
    T *x1 = numbers_.data(), *y1 = x1 + n, *x2 = y1 + n, *y2 = x2 + n, *areas = y2 + n;
    for (int64_t i = 0; i < n; ++i) {
      x1[i] = boxes[i].x1, y1[i] = boxes[i].y1, x2[i] = boxes[i].x2, y2[i] = boxes[i].y2;
      areas[i] = area(boxes[i]);
    }
  }

  BoxArrays<T> arrays() const {
    const T* x1 = numbers_.data();
    return {x1, x1 + n_, x1 + 2 * n_, x1 + 3 * n_, x1 + 4 * n_, n_};
  }

 private:
  std::vector<T> numbers_;
  int64_t n_;
};

}  // namespace fastrcnn
