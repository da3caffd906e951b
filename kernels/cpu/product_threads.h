// Threads that stay: starting one for each product would take as long as many a product does.
#pragma once

#include <cstdint>

namespace tq {

// A job of `count` pieces. run(work, piece, thread) does one; thread numbers are below that of `threads`.
struct SharedWork {
  void (*run)(const void* work, int64_t piece, int64_t thread);
  const void* work;
  int64_t count;
};

// Does all pieces, on the calling thread and up to `threads` - 1 waiting ones. Which thread does which piece is left to
// chance. Where another call has the waiting threads, the calling thread does everything.
void share_work(const SharedWork& work, int64_t threads);

}  // namespace tq
