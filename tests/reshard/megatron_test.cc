#include "reshard/megatron.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "formats/core/error.h"

namespace llmctl::reshard {
namespace {

std::string refusal(int64_t layers, int64_t pp, int64_t virtual_pp,
                    const std::vector<int64_t>& blocks) {
  try {
    share_layers(layers, pp, virtual_pp, blocks);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kUsage);
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("megatron: layers are shared evenly or by blocks") {
  CHECK(share_layers(8, 2, 1, {}) == std::vector<int64_t>{4, 4});
  CHECK(share_layers(8, 2, 2, {}) == std::vector<int64_t>{2, 2, 2, 2});
  CHECK(share_layers(7, 3, 1, {2, 3, 2}) == std::vector<int64_t>{2, 3, 2});
  CHECK(share_layers(4, 2, 1, {0, 4}) == std::vector<int64_t>{0, 4});
  CHECK(refusal(7, 2, 1, {}).find("--pipeline-blocks") != std::string::npos);
  CHECK(refusal(8, 2, 1, {4, 3}).find("7 layers, the model has 8") != std::string::npos);
  CHECK(refusal(8, 3, 1, {4, 4}).find("2 blocks for 3 stages") != std::string::npos);
  CHECK(refusal(8, 2, 2, {4, 4}).find("virtual stages") != std::string::npos);
}

TEST_CASE("megatron: a vocabulary is padded only where tp does not divide it") {
  CHECK(pad_vocab(135040, 8, 128) == 135040);
  CHECK(pad_vocab(50304, 2, 128) == 50304);
  CHECK(pad_vocab(50304, 5, 128) == 50560);
  CHECK(pad_vocab(50257, 1, 128) == 50257);
}

TEST_CASE("megatron: unknown versions have no rules") {
  const ModelConfig config;
  for (const double version : {0.0, 1.0, 2.0, 3.0}) {
    CHECK_NOTHROW(MegatronRules(config, {}, version));
  }
  for (const double version : {-1.0, 0.5, 4.0}) {
    CHECK_THROWS_AS(MegatronRules(config, {}, version), Error);
  }
}

}  // namespace llmctl::reshard
