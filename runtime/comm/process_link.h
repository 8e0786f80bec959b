// How the processes of a group move bulk data, beside what ProcessGroup has for small messages.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "formats/core/process_group.h"

namespace llmctl::runtime {

/// A group whose processes are the ranks of a model. exchange belongs to one thread, which may be
/// another than that of the collective calls.
class ProcessLink : public ProcessGroup {
 public:
  struct Sent {
    int to = 0;
    int channel = 0;  ///< messages of one channel between two ranks keep their order
    const void* data = nullptr;
    size_t bytes = 0;
  };
  struct Received {
    int from = 0;
    int channel = 0;
    void* data = nullptr;
    size_t bytes = 0;
  };
  /// Sends and receives all of these, and returns when they are done. Throws what has ended the
  /// group, kInterrupted when cancelled, kInternal when a message has another size than expected.
  virtual void exchange(std::span<const Sent> sent, std::span<const Received> received) = 0;
};

}  // namespace llmctl::runtime
