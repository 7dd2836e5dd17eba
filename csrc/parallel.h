// A call's tasks, on torch's threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

namespace torchdcn {

// Runs tasks. Whoever is free takes the next: a task's result must not depend on which thread runs it, and then nothing
// does. Where a task throws, no other one starts, and the calling thread throws the same exception once all have ended:
// torch's C functions, between the threads and it, would lose the exception's type.
class Tasks {
 public:
  // Runs task(i) for i < count.
  template <class Task>
  void run(int64_t count, const Task& task) {
    const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), count);
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
      try {
        for (int64_t i; !failed() && (i = next_.fetch_add(1, std::memory_order_relaxed)) < count;) task(i);
      } catch (...) {
        if (!failed_.exchange(true)) exception_ = std::current_exception();
      }
    });
    if (exception_) std::rethrow_exception(exception_);
  }

  // Has a task wait for what an earlier one sets when it is done. False where it never will be, since a task has failed:
  // then the waiting one must end.
  bool wait(const std::atomic<bool>& done) const {
    while (!done.load(std::memory_order_acquire)) {
      if (failed()) return false;
      std::this_thread::yield();
    }
    return true;
  }

 private:
  bool failed() const { return failed_.load(std::memory_order_relaxed); }

  std::atomic<int64_t> next_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr exception_;
};

template <class Task>
void for_each_task(int64_t count, const Task& task) {
  Tasks().run(count, task);
}

}  // namespace torchdcn
