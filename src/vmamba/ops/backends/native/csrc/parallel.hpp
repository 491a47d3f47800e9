// Threads: the ones that the caller has already.
#pragma once

#include <stdint.h>

#include <cstddef>

namespace vmamba {

// Runs body(context) on `threads` threads, the calling one included, and waits for all of them.
void run_team(int threads, void (*body)(void*), void* context);

// Takes the OpenMP runtime that the shared library `user` (PyTorch's) is linked with. Returns whether it was found.
bool adopt_openmp(const char* user);

// Threads of somebody else's for the calls of run_team on this thread, while the object lives. `run` may call body
// fewer times than `threads`, or one call after the other.
class BorrowedThreads {
 public:
  using Run = void (*)(void* owner, int threads, void (*body)(void*), void* context);
  BorrowedThreads(Run run, void* owner);
  ~BorrowedThreads();
  BorrowedThreads(const BorrowedThreads&) = delete;
  BorrowedThreads& operator=(const BorrowedThreads&) = delete;
};

// Tasks of one for_each may wait for tasks of smaller index, which then run already.
void wait_for(const int64_t* counter, int64_t value);
void announce(int64_t* counter, int64_t value);

// Fill all memory that the kernels take with NaN before they use it. For tests: what is read before it was written then
// shows in the results.
void poison_memory(bool on);

// Aligned memory that lives as long as this object, on the thread that made it.
class Memory {
 public:
  explicit Memory(int64_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
  std::size_t size_;
};

// The part of for_each that does not depend on the task's type.
void run_tasks(int threads, int64_t count, int64_t scratch_bytes, void (*call)(const void*, int64_t, void*),
               const void* task);

// Calls task(index, scratch) for every index, in any order and on any thread. `scratch` is aligned memory of
// `scratch_bytes`, one for each thread; its contents are undefined. `work` is about how many elements a task passes
// through; where there is little to do, fewer threads are woken.
template <class Task>
void for_each(int threads, int64_t count, int64_t work, int64_t scratch_bytes, const Task& task) {
  constexpr int64_t kGrain = 8192;  // elements a thread must have to be worth waking: some ten microseconds
  const int64_t useful = 1 + count * work / kGrain;
  run_tasks(
      useful < threads ? int(useful) : threads, count, scratch_bytes,
      [](const void* t, int64_t index, void* scratch) { (*static_cast<const Task*>(t))(index, scratch); }, &task);
}

}  // namespace vmamba
