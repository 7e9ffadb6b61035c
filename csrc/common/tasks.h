// Parallel work in pieces of unequal size.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace fastrcnn {

// Calls run(worker, i) for each i < count. A thread that is done takes the next one, so that a few large tasks do not
// end up on one thread. Which thread runs a task must not matter for its result. worker < the number of threads: tasks
// of one worker never run at the same time, so they may share scratch.
template <typename Run>
void for_each_task_with_worker(int64_t count, const Run& run) {
  std::atomic<int64_t> next{0};
  const auto threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t worker, int64_t) {
    for (int64_t i = next++; i < count; i = next++) run(worker, i);
  });
}

// The same without the worker: run(i).
template <typename Run>
void for_each_task(int64_t count, const Run& run) {
  for_each_task_with_worker(count, [&](int64_t, int64_t i) { run(i); });
}

}  // namespace fastrcnn
