// Any bytes as a torch file: refused with an Error, or every tensor lies inside the file.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "formats/core/error.h"
#include "formats/torch_file.h"

using namespace llmctl;
using namespace llmctl::formats;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int descriptor = ::memfd_create("torch_file_fuzz", 0);
  if (descriptor < 0 || ::write(descriptor, data, size) != static_cast<ssize_t>(size))
    __builtin_trap();
  try {
    std::vector<StoredTensor> tensors;
    std::vector<std::string> notes;
    read_torch_file("/proc/self/fd/" + std::to_string(descriptor), 0, tensors, notes);
    for (const StoredTensor& tensor : tensors) {
      uint64_t last =
          tensor.offset_bytes + (tensor.num_elements() != 0 ? dtype_bytes(tensor.dtype) : 0);
      if (tensor.strides.empty()) last = tensor.offset_bytes + tensor.num_bytes();
      if (last > size) __builtin_trap();
    }
  } catch (const Error&) {
  }
  ::close(descriptor);
  return 0;
}
