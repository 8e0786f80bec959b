#include <doctest/doctest.h>

#include <filesystem>
#include <span>
#include <string>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "reshard/compare.h"
#include "reshard/convert.h"
#include "reshard/families/family.h"
#include "reshard/model.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::reshard;
namespace fs = std::filesystem;

namespace {

void write_text(const fs::path& path, const std::string& text) {
  File file = File::create(path);
  file.write_at(std::as_bytes(std::span(text)), 0);
}

std::string refusal(const std::string& text) {
  try {
    UserFamily::parse(text, "mine.json");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kInvalidInput);
    return error.what();
  }
  return "accepted";
}

/// GPT-2 told in a user's words: the same tensors under an architecture that no row answers to.
constexpr const char* kMine = R"json({
  "name": "mine", "like": "gpt2", "architectures": ["MyLMHeadModel"], "prefix": "transformer.",
  "set": {"activation": "gelu_new"},
  "tensors": {
    "transformer.wte.weight": "embed : vocab hidden",
    "transformer.wpe.weight": "pos : position hidden",
    "transformer.h.{l}.ln_1.weight": "norm1 : hidden",
    "transformer.h.{l}.ln_1.bias": "norm1b : hidden",
    "transformer.h.{l}.attn.c_attn.weight": "hidden ({q heads d | k kv d | v kv d})",
    "transformer.h.{l}.attn.c_attn.bias": "({qb heads d | kb kv d | vb kv d})",
    "transformer.h.{l}.attn.c_proj.weight": "o : (heads d) hidden",
    "transformer.h.{l}.attn.c_proj.bias": "ob : hidden",
    "transformer.h.{l}.ln_2.weight": "norm2 : hidden",
    "transformer.h.{l}.ln_2.bias": "norm2b : hidden",
    "transformer.h.{l}.mlp.c_fc.weight": "up : hidden ffn",
    "transformer.h.{l}.mlp.c_fc.bias": "upb : ffn",
    "transformer.h.{l}.mlp.c_proj.weight": "down : ffn hidden",
    "transformer.h.{l}.mlp.c_proj.bias": "downb : hidden",
    "transformer.ln_f.weight": "final_norm : hidden",
    "transformer.ln_f.bias": "final_norm_b : hidden",
    "lm_head.weight": "head : vocab hidden"
  },
  "drop": {"transformer.h.{l}.attn.bias": "mask buffer"}
})json";

}  // namespace

TEST_CASE("user family: a model under a name of its own reads converts and comes back") {
  test::TempDir dir;
  const fs::path original = test::golden("families/gpt2");
  fs::create_directory(dir / "model");
  fs::copy_file(original / "model.safetensors", dir.path() / "model" / "model.safetensors");
  std::string config = read_text_file(original / "config.json", 1 << 16);
  config.replace(config.find("GPT2LMHeadModel"), 15, "MyLMHeadModel");
  write_text(dir.path() / "model" / "config.json", config);
  write_text(dir / "mine.json", kMine);

  CHECK_THROWS_AS(open_model(dir / "model"), Error);
  const Model mine = open_model(dir / "model", {dir / "mine.json"});
  CHECK(mine.config().family == "mine");
  CHECK(digest(mine, 1).digest == digest(open_model(original), 1).digest);

  ConvertOptions options;
  options.source = dir / "model";
  options.destination = dir / "ft";
  options.format = "ft";
  options.tp = 2;
  options.family_file = dir / "mine.json";
  Conversion(options).run();
  // The tree names a family that only the user's file describes.
  CHECK_THROWS_AS(open_model(dir / "ft"), Error);
  const Model ft = open_model(dir / "ft", {dir / "mine.json"});
  CHECK(diff(mine, ft, {}).differences.empty());
  options.source = dir / "ft";
  options.destination = dir / "back";
  options.format = "hf";
  options.tp = 1;
  Conversion(options).run();
  CHECK(diff(mine, open_model(dir / "back", {dir / "mine.json"}), {}).differences.empty());
}

TEST_CASE("user family: refuses a file that it cannot mean and says where") {
  CHECK(refusal("[]").find("a JSON object expected") != std::string::npos);
  CHECK(refusal("{}").find("'name' is missing") != std::string::npos);
  CHECK(refusal(R"json({"name": "x"})json").find("'tensors' is missing") != std::string::npos);
  CHECK(refusal(R"json({"name": "x", "tensors": {}})json").find("'architectures'") !=
        std::string::npos);
  CHECK(refusal(R"json({"name": "x", "colour": 1})json").find("unknown key 'colour'") !=
        std::string::npos);
  CHECK(refusal(R"json({"name": "x", "architectures": ["X"], "like": "y", "tensors": {}})json")
            .find("'like' names no built-in family") != std::string::npos);
  CHECK(
      refusal(R"json({"name": "x", "architectures": ["X"], "tensors": {"a": "q : nonsense"}})json")
          .find("has no axis 'nonsense'") != std::string::npos);
  CHECK(
      refusal(
          R"json({"name": "x", "architectures": ["X"], "keys": {"n": "no_field"}, "tensors": {}})json")
          .find("no field is called 'no_field'") != std::string::npos);
  CHECK(
      refusal(
          R"json({"name": "x", "architectures": ["X"], "set": {"norm_eps": "small"}, "tensors": {}})json")
          .find("finite number") != std::string::npos);
  CHECK(refusal(R"json({"name": "x", "name": "y"})json").find("duplicate") != std::string::npos);
}
