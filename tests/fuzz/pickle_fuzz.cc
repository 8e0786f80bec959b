// Any bytes as a pickle: refused with an Error or read, within the limits, and safe to walk.
#include <cstddef>
#include <cstdint>
#include <span>

#include "formats/core/error.h"
#include "formats/pickle.h"

using namespace llmctl;
using namespace llmctl::formats;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const Pickle pickle = Pickle::parse(std::as_bytes(std::span(data, size)), "fuzz");
    if (pickle.consumed_bytes() > size) __builtin_trap();
    for (uint32_t i = 0; i < pickle.num_nodes(); ++i) {
      const PickleNode node = pickle.node(i);
      node.describe();
      node.find("key");
      node.find_bytes();
      for (size_t k = 0; node.kind() != PickleKind::kDict && k < node.size(); ++k)
        node.item(k).kind();
      if (node.kind() == PickleKind::kTensor) node.tensor_shape();
    }
  } catch (const Error&) {
  }
  return 0;
}
