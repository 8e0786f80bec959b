// Safetensors from memory: whatever is accepted lies inside the file.
#include <cstdlib>
#include <span>

#include "formats/core/error.h"
#include "formats/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<llmctl::formats::StoredTensor> tensors;
  try {
    llmctl::formats::parse_safetensors(std::as_bytes(std::span(data, size)), "fuzz", 0, tensors);
  } catch (const llmctl::Error&) {
    if (!tensors.empty()) std::abort();
  }
  for (const auto& tensor : tensors) {
    if (!llmctl::is_inside(tensor.offset_bytes, tensor.num_bytes(), size)) std::abort();
  }
  return 0;
}
