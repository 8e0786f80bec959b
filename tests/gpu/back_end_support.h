// What the tests of the CUDA back end share, on the emulated machine and on a device.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "reshard/model.h"
#include "runtime/engine.h"

namespace llmctl::test {

using runtime::Device;
using runtime::Engine;
using runtime::EngineOptions;
using runtime::GenerateRequest;

inline EngineOptions on(Device device, int tp = 1, int pp = 1) {
  EngineOptions options;
  options.device = device;
  options.share_device = true;
  options.tp = tp;
  options.pp = pp;
  options.threads = 1;
  return options;
}

/// Ids that look random: `count` of them from a vocabulary of at least 97.
inline std::vector<int32_t> some_ids(int64_t count, int32_t seed = 1) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < count; ++i) ids.push_back((i * i * 31 + seed * 17 + i * 7) % 90 + 3);
  return ids;
}

/// Largest difference as a part of the range of `want`; infinite for what is not finite.
inline float difference(const std::vector<float>& got, const std::vector<float>& want) {
  REQUIRE(got.size() == want.size());
  const auto [low, high] = std::minmax_element(want.begin(), want.end());
  float worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(got[i])) return INFINITY;
    worst = std::max(worst, std::abs(got[i] - want[i]));
  }
  return worst / (*high - *low);
}

inline GenerateRequest greedy(std::vector<int32_t> prompt, int64_t tokens) {
  GenerateRequest request;
  request.prompt_ids = std::move(prompt);
  request.max_new_tokens = tokens;
  return request;
}

inline std::vector<std::vector<int32_t>> generate(Engine& engine,
                                                  const std::vector<GenerateRequest>& requests) {
  std::vector<std::vector<int32_t>> ids;
  for (const auto& result : engine.generate(requests).results) ids.push_back(result.ids);
  return ids;
}

}  // namespace llmctl::test
