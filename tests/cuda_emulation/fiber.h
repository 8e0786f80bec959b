// Fiber: a function that can be left in the middle and continued, on one host thread.
#pragma once

#include <cstddef>
#include <memory>

namespace llmctl::cuda_emulation {

/// Runs `entry` on a stack of its own. One host thread at a time may use fibers. `entry` must not
/// return and not throw: its first act is a call of begin, its last one of leave. Destroying or
/// restarting a fiber forgets what its stack held; nothing on it is destroyed.
class Fiber {
 public:
  using Entry = void (*)();

  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// The next enter begins at `entry`.
  void start(Entry entry);
  /// Runs the fiber until it leaves. Not to be called in a fiber.
  void enter();
  void begin();
  /// Back to where a fiber was entered last. To be called in this fiber.
  void leave();
  /// Goes on in `other`, which then leaves in place of this one. To be called in this fiber.
  void pass_to(Fiber& other);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmctl::cuda_emulation
