// The one way a signal reaches work in progress: a flag that long loops poll.
#pragma once

namespace llmctl {

/// Asks the work in progress to stop. Async-signal-safe and callable from any thread; there is no
/// way back, because a process that was asked to stop does not start something else.
void request_cancel() noexcept;

/// Whether `request_cancel` has been called. One relaxed load: cheap enough for every chunk,
/// token or tensor.
bool cancel_requested() noexcept;

/// Throws Error kInterrupted once cancellation was requested, so that the stack unwinds and
/// temporary output is removed on the way.
void throw_if_cancelled();

}  // namespace llmctl
