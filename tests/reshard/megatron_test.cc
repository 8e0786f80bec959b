#include "reshard/megatron.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "formats/core/error.h"
#include "reshard/compare.h"
#include "reshard/config_fields.h"
#include "reshard/convert.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

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

TEST_CASE("megatron: what Megatron computes goes there and back unchanged") {
  // Parallel residuals, projected embeddings, the ReLU, windows and other scalings it does not
  // have.
  const std::set<std::string> strange = {"gptj",        "gpt_neox",   "mistral-window",
                                         "opt",         "opt-350m",   "opt-untied",
                                         "llama-rope3", "gpt2-inner", "gpt2-openai"};
  size_t num_there = 0;
  for (const auto& entry : std::filesystem::directory_iterator(test::golden("families"))) {
    const std::filesystem::path path = entry.path();
    const std::string name = path.filename().string();
    if (!std::filesystem::exists(path / "config.json")) continue;
    CAPTURE(name);
    const Model original = open_model(path);
    const test::TempDir dir;
    ConvertOptions options;
    options.source = path;
    options.destination = dir / "there";
    options.format = "megatron";
    options.pp = 2;
    const int64_t layers = original.config().num_hidden_layers;
    options.pipeline_blocks = {layers - 1, 1};
    try {
      Conversion(options).run();
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kUsage);
      CHECK(strange.count(name) == 1);
      continue;
    }
    ++num_there;
    const std::string want = digest(original, 2).digest;
    CHECK(digest(open_model(dir / "there"), 2).digest == want);
    options = {};
    options.source = dir / "there";
    options.destination = dir / "back";
    options.format = "hf";
    Conversion(options).run();
    const Model back = open_model(dir / "back");
    CHECK(digest(back, 2).digest == want);
    // Which tokens are special, Megatron does not say.
    ModelConfig config = back.config();
    config.bos_token_id = original.config().bos_token_id;
    config.eos_token_ids = original.config().eos_token_ids;
    config.pad_token_id = original.config().pad_token_id;
    // It follows from the dtype there, and this golden is one of BF16 angles in an F32 file.
    if (name == "yuan-bf16-rope") config.rope_in_bf16 = original.config().rope_in_bf16;
    for (const ConfigField& field : config_field_table()) {
      CAPTURE(field.name);
      CHECK(get_field_text(config, field) == get_field_text(original.config(), field));
    }
    CHECK(config == original.config());
  }
  CHECK(num_there >= 15);
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
