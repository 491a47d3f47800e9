#include "parallel.hpp"

#include <atomic>
#include <cstring>
#include <exception>
#include <new>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vmamba {
namespace {

using ParallelFn = void (*)(void (*)(void*), void*, unsigned, unsigned);
ParallelFn openmp_parallel = nullptr;
bool poison = false;
thread_local BorrowedThreads::Run borrowed = nullptr;
thread_local void* owner = nullptr;

}  // namespace

BorrowedThreads::BorrowedThreads(Run run, void* theirs) {
  borrowed = run;
  owner = theirs;
}

BorrowedThreads::~BorrowedThreads() { borrowed = nullptr; }

bool adopt_openmp(const char* user) {
  openmp_parallel = nullptr;
#if defined(__unix__) || defined(__APPLE__)
  // GOMP_parallel is what compilers emit for `#pragma omp parallel`; LLVM's and Intel's runtimes export it too. Looking
  // it up through PyTorch's own library finds PyTorch's runtime, whatever its file is called and whichever other
  // OpenMP runtimes the process has loaded.
  if (void* library = dlopen(user, RTLD_LAZY | RTLD_NOLOAD)) {
    openmp_parallel = reinterpret_cast<ParallelFn>(dlsym(library, "GOMP_parallel"));
    dlclose(library);
  }
#else
  (void)user;
#endif
  return openmp_parallel != nullptr;
}

void run_team(int threads, void (*body)(void*), void* context) {
  if (threads <= 1) return body(context);
  if (borrowed) return borrowed(owner, threads, body, context);
  if (openmp_parallel) return openmp_parallel(body, context, unsigned(threads), 0);
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(body, context);
  body(context);
  for (auto& other : others) other.join();
}

void wait_for(const int64_t* counter, int64_t value) {
  for (int turns = 0; __atomic_load_n(counter, __ATOMIC_ACQUIRE) != value; ++turns)
    if (turns > 1000) std::this_thread::yield();  // the other thread may be waiting for this processor
}

void announce(int64_t* counter, int64_t value) { __atomic_store_n(counter, value, __ATOMIC_RELEASE); }

void poison_memory(bool on) { poison = on; }

namespace {

constexpr std::size_t kLine = 64, kLargePage = std::size_t(2) << 20;

constexpr std::align_val_t alignment(std::size_t size) {
  return std::align_val_t(size < 4 * kLargePage ? kLine : kLargePage);
}

// The system gives out much memory as it is touched, page by page, which for images of 4096² takes a tenth of the time:
// in large pages, where it has them.
void* allocate(std::size_t size) {
  void* data = ::operator new(size, alignment(size));
#if defined(__linux__)
  if (alignment(size) == std::align_val_t(kLargePage)) madvise(data, size, MADV_HUGEPAGE);
#endif
  return data;
}

void release(void* data, std::size_t size) { ::operator delete(data, alignment(size)); }

// Memory that a thread has used and will soon want again: what comes from the operating system anew at every call costs
// as much time as a small product.
class Spare {
 public:
  ~Spare() {
    for (const Block& block : blocks_)
      if (block.data) release(block.data, block.size);
  }
  void* take(std::size_t size, std::size_t& capacity) {
    Block* best = nullptr;
    for (Block& block : blocks_)
      if (block.data && block.size >= size && block.size <= 2 * size && (!best || block.size < best->size))
        best = &block;
    if (!best) return nullptr;
    void* data = best->data;
    capacity = best->size;
    *best = {};
    return data;
  }
  bool give(void* data, std::size_t size) {
    if (size > kLargest) return false;
    Block& place = blocks_[next_];
    if (place.data) release(place.data, place.size);
    place = {data, size};
    next_ = (next_ + 1) % kBlocks;
    return true;
  }

 private:
  static constexpr std::size_t kLargest = std::size_t(8) << 20;
  static constexpr int kBlocks = 6;
  struct Block {
    void* data = nullptr;
    std::size_t size = 0;
  };
  Block blocks_[kBlocks];
  int next_ = 0;
};
thread_local Spare spare;

}  // namespace

Memory::Memory(int64_t bytes)
    : data_(nullptr), size_((std::size_t(bytes < 1 ? 1 : bytes) + kLine - 1) / kLine * kLine) {
  if (!poison) data_ = spare.take(size_, size_);  // tests want to see what is written beyond the end
  if (!data_) data_ = allocate(size_);
  if (poison) std::memset(data_, 0xff, size_);
}

Memory::~Memory() {
  if (poison || !spare.give(data_, size_)) release(data_, size_);
}

void run_tasks(int threads, int64_t count, int64_t scratch_bytes, void (*call)(const void*, int64_t, void*),
               const void* task) {
  if (threads > count) threads = int(count);
  // Memory is taken here, at once for the whole team.
  constexpr int64_t kPage = 4096;
  const int64_t stride = (scratch_bytes + kPage - 1) / kPage * kPage + 64;  // not all at the same cache sets
  Memory scratch(stride * (threads < 1 ? 1 : threads));
  struct Team {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> member{0};
    int64_t count, stride;
    char* scratch;
    void (*call)(const void*, int64_t, void*);
    const void* task;
    std::atomic<bool> failed{false};
    std::exception_ptr failure;
  } team;
  team.count = count;
  team.stride = stride;
  team.scratch = scratch.as<char>();
  team.call = call;
  team.task = task;
  run_team(
      threads,
      [](void* context) {
        Team& t = *static_cast<Team*>(context);
        void* mine = t.scratch + t.stride * t.member.fetch_add(1);
        try {
          for (int64_t i; (i = t.next.fetch_add(1)) < t.count;) t.call(t.task, i, mine);
        } catch (...) {  // no memory for a task inside the task
          if (!t.failed.exchange(true)) t.failure = std::current_exception();
        }
      },
      &team);
  if (team.failure) std::rethrow_exception(team.failure);
}

}  // namespace vmamba
