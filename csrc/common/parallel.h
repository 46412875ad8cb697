// Work shared by torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace crane {

// Calls f(task) once for each task in [0, n_tasks); a thread takes the next task when it has finished one. What a task
// computes must not depend on who runs it, so that results are the same for every number of threads.
template <typename F>
void parallel_tasks(int64_t n_tasks, const F& f) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    for (int64_t task = next++; task < n_tasks; task = next++) f(task);
  };
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), n_tasks);
  if (threads <= 1) {
    work(0, 1);
  } else {
    torch::stable::parallel_for(0, threads, 1, work);
  }
}

}  // namespace crane
