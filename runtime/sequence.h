// One request on its way through the batch.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/request.h"

namespace llmctl::runtime {

/// Every rank keeps its own and all stay equal, because each new id is broadcast.
struct Sequence {
  const GenerateRequest* request = nullptr;
  GenerateResult result;
  std::vector<int32_t> pages;
  int64_t cached = 0;  ///< tokens whose keys and values are in the cache

  int64_t prompt_size() const { return static_cast<int64_t>(request->prompt_ids.size()); }
  int64_t known() const { return prompt_size() + static_cast<int64_t>(result.ids.size()); }
  int32_t id(int64_t position) const {
    return position < prompt_size() ? request->prompt_ids[static_cast<size_t>(position)]
                                    : result.ids[static_cast<size_t>(position - prompt_size())];
  }
  bool done() const {
    return result.stopped || static_cast<int64_t>(result.ids.size()) >= request->max_new_tokens;
  }
};

/// Tokens of a request that can ever be in the cache: the last one generated is never fed back.
inline int64_t max_cached_tokens(const GenerateRequest& request) {
  if (request.max_new_tokens == 0) return 0;
  return static_cast<int64_t>(request.prompt_ids.size()) + request.max_new_tokens - 1;
}

}  // namespace llmctl::runtime
