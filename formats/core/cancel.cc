#include "formats/core/cancel.h"

#include <atomic>

#include "formats/core/error.h"

namespace llmctl {
namespace {

// A signal handler has no argument to carry a context in, which makes this the one mutable global.
std::atomic<bool> cancelled{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set from a signal handler");

}  // namespace

void request_cancel() noexcept { cancelled.store(true, std::memory_order_relaxed); }

bool cancel_requested() noexcept { return cancelled.load(std::memory_order_relaxed); }

void throw_if_cancelled() {
  if (cancel_requested()) throw Error(ErrorCode::kInterrupted, "interrupted");
}

}  // namespace llmctl
