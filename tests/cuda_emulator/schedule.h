// The order in which blocks and threads run, see scheduler.h.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace cuda_emulator {

struct Schedule {
  enum { kInOrder, kReversed, kRandom } kind = kInOrder;
  std::mt19937_64 random;

  static Schedule from_environment() {
    const char* text = std::getenv("CUDA_EMULATOR_SCHEDULE");
    Schedule schedule;
    if (text == nullptr || *text == 0 || !std::strcmp(text, "in_order")) return schedule;
    if (!std::strcmp(text, "reversed")) {
      schedule.kind = kReversed;
      return schedule;
    }
    char* end;
    schedule.kind = kRandom;
    schedule.random.seed(std::strtoull(text, &end, 10));
    if (*end != 0) {
      throw std::runtime_error(std::string("CUDA_EMULATOR_SCHEDULE: expected in_order, reversed or a number, got ") +
                               text);
    }
    return schedule;
  }

  bool coin() { return random() & 1; }

  // The numbers below n in the order in which they run.
  template <typename T>
  std::vector<T> order(T n) {
    std::vector<T> numbers(n);
    for (T i = 0; i < n; ++i) numbers[i] = kind == kReversed ? n - 1 - i : i;
    if (kind == kRandom) std::shuffle(numbers.begin(), numbers.end(), random);
    return numbers;
  }

  // Which of n waiting threads goes on; they are in the order in which they were released.
  size_t pick(size_t n) { return kind == kInOrder ? 0 : kind == kReversed ? n - 1 : random() % n; }
};

}  // namespace cuda_emulator
