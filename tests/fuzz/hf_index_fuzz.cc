// The shard index: whatever is accepted names plain files and every entry has a shard.
#include <cstdlib>
#include <span>

#include "formats/core/error.h"
#include "formats/directory.h"
#include "formats/hugging_face.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto index =
        llmctl::formats::parse_weight_index(std::as_bytes(std::span(data, size)), "fuzz");
    for (const auto& shard : index.shards) {
      if (!llmctl::formats::is_plain_name(shard)) std::abort();
    }
    for (const auto& entry : index.entries) {
      if (static_cast<size_t>(entry.shard) >= index.shards.size()) std::abort();
    }
  } catch (const llmctl::Error&) {
  }
  return 0;
}
