#include "product_threads.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "floating_point.h"

namespace tq {
namespace {

constexpr int64_t kMostThreads = 256;
// Looks before a thread goes to sleep: about a tenth of a millisecond, which is what a model often needs from one
// product to the next. Waking a thread would take as long as many a product does.
constexpr int kLooks = 4000;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether something became true while it was looked at for a while.
template <class Condition>
bool soon(Condition condition) {
  for (int look = 0; look < kLooks; ++look) {
    if (condition()) return true;
    relax();
  }
  return false;
}

// Waiting threads join the job that is open when they see it. One that comes late finds none and is not waited for.
class Pool {
 public:
  void share(const SharedWork& work, int64_t threads) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner.owns_lock()) return run_alone(work);
    grow(threads - 1);
    open(work, threads - 1);
    run_pieces(work, 0);
    close();
  }

  static void run_alone(const SharedWork& work) {
    const DefaultFloatingPoint mode;
    for (int64_t piece = 0; piece < work.count; ++piece) work.run(work.work, piece, 0);
  }

 private:
  // Further threads, as far as there are any to be had.
  void grow(int64_t wanted) {
    try {
      for (; threads_ < wanted && threads_ < kMostThreads; ++threads_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      // Those that are there do the rest.
    }
  }

  void open(const SharedWork& work, int64_t places) {
    const std::lock_guard<std::mutex> lock(mutex_);
    next_ = 0;
    open_ = &work;
    places_ = places;
    joined_ = 0;
    ++job_;
    if (sleeping_ > 0) wake_.notify_all();
  }

  void close() {
    std::unique_lock<std::mutex> lock(mutex_);
    open_ = nullptr;
    lock.unlock();
    if (soon([&] { return working_ == 0; })) return;
    lock.lock();
    done_.wait(lock, [&] { return working_ == 0; });
  }

  void run_pieces(const SharedWork& work, int64_t thread) {
    const DefaultFloatingPoint mode;
    for (int64_t piece = next_++; piece < work.count; piece = next_++) work.run(work.work, piece, thread);
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
    for (int64_t seen = 0;;) {
      const bool is_there = soon([&] { return job_ != seen; });
      lock.lock();
      if (!is_there) {
        ++sleeping_;
        wake_.wait(lock, [&] { return job_ != seen; });
        --sleeping_;
      }
      seen = job_;
      const SharedWork* const work = joined_ < places_ ? open_ : nullptr;
      if (work != nullptr) {
        const int64_t thread = ++joined_;
        ++working_;
        lock.unlock();
        run_pieces(*work, thread);
        lock.lock();
        if (--working_ == 0) done_.notify_one();
      }
      lock.unlock();
    }
  }

  std::mutex owner_, mutex_;
  std::condition_variable wake_, done_;
  std::atomic<int64_t> next_{0}, job_{0}, working_{0};
  const SharedWork* open_ = nullptr;
  int64_t places_ = 0, joined_ = 0, sleeping_ = 0;
  int64_t threads_ = 0;
};

std::atomic<Pool*> the_pool{nullptr};

// A child process has none of its parent's threads; what they held stays behind with them.
void forget_pool() { the_pool = nullptr; }

// Never freed: its threads wait for as long as the process lives.
Pool& pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  (void)registered;
  if (Pool* found = the_pool) return *found;
  Pool* made = new Pool;
  Pool* found = nullptr;
  if (the_pool.compare_exchange_strong(found, made)) return *made;
  delete made;
  return *found;
}

}  // namespace

void share_work(const SharedWork& work, int64_t threads) {
  if (threads < 2 || work.count < 2) return Pool::run_alone(work);
  pool().share(work, threads);
}

}  // namespace tq
