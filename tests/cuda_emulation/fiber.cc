#include "tests/cuda_emulation/fiber.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// swapcontext would ask the kernel for the signal mask at each switch, which costs twenty times
// the switch. Saves what the System V ABI says a call preserves.
extern "C" void llmctl_switch_stack(void** save, void* to);
asm(R"(
.text
.p2align 4
.type llmctl_switch_stack, @function
llmctl_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  retq
.size llmctl_switch_stack, .-llmctl_switch_stack
)");
#endif

namespace llmctl::cuda_emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;  // touched only as far as it is used
constexpr size_t kGuardBytes = 4096;

}  // namespace

struct Fiber::Impl {
  char* memory = nullptr;
#if defined(__x86_64__)
  void* inside = nullptr;
#else
  ucontext_t inside{};
#endif
};

namespace {

// Where fibers were entered from.
#if defined(__x86_64__)
void* outside = nullptr;
#else
ucontext_t outside{};
#endif
#if defined(__SANITIZE_ADDRESS__)
const void* outside_stack = nullptr;
size_t outside_bytes = 0;
bool entered = false;  // by `enter`, and not by another fiber

/// Tells the sanitizer that a fiber runs; keeps the stack it was entered from.
void arrive(void* fake) {
  const void* stack = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake, &stack, &bytes);
  if (!entered) return;
  outside_stack = stack;
  outside_bytes = bytes;
  entered = false;
}
#endif

}  // namespace

Fiber::Fiber() : impl_(std::make_unique<Impl>()) {
  void* const memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kGuardBytes, PROT_NONE);
  impl_->memory = static_cast<char*>(memory);
}

Fiber::~Fiber() { munmap(impl_->memory, kStackBytes + kGuardBytes); }

void Fiber::start(Entry entry) {
  Impl& self = *impl_;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(self.memory + kGuardBytes, kStackBytes);  // frames left for good
#endif
#if defined(__x86_64__)
  auto* top = reinterpret_cast<uint64_t*>(self.memory + kGuardBytes + kStackBytes);
  // As if `entry` had been called: the stack is 8 off a multiple of 16 at its first instruction.
  *--top = 0;
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  self.inside = top;
#else
  getcontext(&self.inside);
  self.inside.uc_stack.ss_sp = self.memory + kGuardBytes;
  self.inside.uc_stack.ss_size = kStackBytes;
  self.inside.uc_link = nullptr;
  makecontext(&self.inside, entry, 0);
#endif
}

void Fiber::begin() {
#if defined(__SANITIZE_ADDRESS__)
  arrive(nullptr);
#endif
}

void Fiber::enter() {
  Impl& self = *impl_;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  entered = true;
  __sanitizer_start_switch_fiber(&fake, self.memory + kGuardBytes, kStackBytes);
#endif
#if defined(__x86_64__)
  llmctl_switch_stack(&outside, self.inside);
#else
  swapcontext(&outside, &self.inside);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void Fiber::leave() {
  Impl& self = *impl_;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, outside_stack, outside_bytes);
#endif
#if defined(__x86_64__)
  llmctl_switch_stack(&self.inside, outside);
#else
  swapcontext(&self.inside, &outside);
#endif
#if defined(__SANITIZE_ADDRESS__)
  arrive(fake);
#endif
}

void Fiber::pass_to(Fiber& other) {
  Impl& self = *impl_;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, other.impl_->memory + kGuardBytes, kStackBytes);
#endif
#if defined(__x86_64__)
  llmctl_switch_stack(&self.inside, other.impl_->inside);
#else
  swapcontext(&self.inside, &other.impl_->inside);
#endif
#if defined(__SANITIZE_ADDRESS__)
  arrive(fake);
#endif
}

}  // namespace llmctl::cuda_emulation
