#include "formats/deepspeed.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "formats/core/error.h"
#include "formats/megatron.h"
#include "formats/registry.h"
#include "reshard/compare.h"
#include "reshard/convert.h"
#include "reshard/model.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
namespace fs = std::filesystem;

namespace {

fs::path golden_tree() { return test::golden("megatron/bloom/deepspeed-tp2"); }

/// What is said of a copy of the golden tree after `damage(step directory)`.
template <typename Damage>
std::string refusal(const Damage& damage) {
  const test::TempDir dir;
  fs::copy(golden_tree(), dir / "ckpt", fs::copy_options::recursive);
  damage(dir / "ckpt" / "global_step10");
  try {
    reshard::check_replicas(reshard::open_model(dir / "ckpt"));
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kInvalidInput);
    return error.what();
  }
  return "accepted";
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("deepspeed: names of layer files are parsed by their numbers") {
  const auto parsed = formats::parse_deepspeed_layer_file("layer_03-model_01-model_states.pt");
  REQUIRE(parsed.has_value());
  CHECK(parsed->index == 3);
  CHECK(parsed->rank == 1);
  CHECK(formats::parse_deepspeed_layer_file("layer_103-model_128-model_states.pt").has_value());
  for (const char* name :
       {"layer_-model_00-model_states.pt", "layer_3-model_-model_states.pt", "layer_x",
        "layer_03-model_00-model_states.pth", "layer_03-model_00-optim_states.pt",
        "mp_rank_00_model_states.pt", "layer_03-model_70000-model_states.pt",
        "layer_99999999999999999999-model_00-model_states.pt"}) {
    CAPTURE(name);
    CHECK_FALSE(formats::parse_deepspeed_layer_file(name).has_value());
  }
}

TEST_CASE("deepspeed: BLOOM's layer files hold the model of its Hugging Face form") {
  const auto want = reshard::open_model(test::golden("megatron/bloom/hf"));
  for (const fs::path& path : {golden_tree(), golden_tree() / "global_step10"}) {
    CHECK(formats::detect_format(path).name == "deepspeed");
    const auto model = reshard::open_model(path);
    reshard::check_replicas(model);
    CHECK(model.checkpoint().tensor_parallel_size == 2);
    CHECK(model.config().family == "bloom");
    CHECK(reshard::digest(model, 1).digest == reshard::digest(want, 1).digest);
    CHECK(model.checkpoint().megatron->iteration == 10);
  }
}

TEST_CASE("deepspeed: both tracker files in one root are no riddle") {
  const test::TempDir dir;
  fs::copy(golden_tree(), dir / "ckpt", fs::copy_options::recursive);
  std::ofstream(dir / "ckpt" / "latest_checkpointed_iteration.txt") << "10";
  CHECK(formats::detect_format(dir / "ckpt").name == "deepspeed");
}

TEST_CASE("deepspeed: a second copy of the embedding is compared and dropped") {
  CHECK(refusal([](const fs::path& step) {
          for (const char* rank : {"00", "01"}) {
            const auto file = [&](const char* index) {
              return step / (std::string("layer_") + index + "-model_" + rank + "-model_states.pt");
            };
            fs::copy_file(file("01"), file("07"));
          }
        }) == "accepted");
  // The ranks' rows changed places: no longer the embedding.
  CHECK(has(refusal([](const fs::path& step) {
              fs::copy_file(step / "layer_01-model_00-model_states.pt",
                            step / "layer_07-model_01-model_states.pt");
              fs::copy_file(step / "layer_01-model_01-model_states.pt",
                            step / "layer_07-model_00-model_states.pt");
            }),
            "word_embeddings"));
}

TEST_CASE("deepspeed: what is missing or does not belong is refused by name") {
  CHECK(has(
      refusal([](const fs::path& step) { fs::remove(step / "layer_04-model_01-model_states.pt"); }),
      "rank 1 of 'layer_04-model_00-model_states.pt' is missing"));
  CHECK(has(refusal([](const fs::path& step) {
              for (const char* rank : {"00", "01"}) {
                fs::remove(step / (std::string("layer_01-model_") + rank + "-model_states.pt"));
              }
            }),
            "a transformer layer before any embedding"));
  CHECK(has(refusal([](const fs::path& step) {
              for (const char* rank : {"00", "01"}) {
                fs::remove(step / (std::string("layer_06-model_") + rank + "-model_states.pt"));
              }
            }),
            "no file holds a norm"));
  // A layer in the middle: its successor does not follow.
  CHECK(has(refusal([](const fs::path& step) {
              for (const char* rank : {"00", "01"}) {
                const auto file = [&](const char* index) {
                  return step /
                         (std::string("layer_") + index + "-model_" + rank + "-model_states.pt");
                };
                fs::rename(file("06"), file("09"));
                fs::rename(file("04"), file("05"));
              }
            }),
            "numbered 5, and the one before is 3"));
  CHECK(has(refusal([](const fs::path& step) {
              fs::copy_file(step / "layer_06-model_00-model_states.pt",
                            step / "layer_04-model_01-model_states.pt",
                            fs::copy_options::overwrite_existing);
            }),
            "it holds a norm, rank 0 a transformer layer"));
  CHECK(has(refusal([](const fs::path& step) {
              std::ofstream(step.parent_path() / "latest") << "global_step11";
            }),
            "'global_step11', which is not there; the steps are global_step10"));
  // Without args nobody says how many heads there are.
  CHECK(has(refusal([](const fs::path& step) {
              fs::remove(step / "mp_rank_00_model_states.pt");
              fs::remove(step / "mp_rank_01_model_states.pt");
            }),
            "--set num_attention_heads=N"));
}

TEST_CASE("deepspeed: Megatron's own form of the same model is written from it") {
  const test::TempDir dir;
  reshard::ConvertOptions options;
  options.source = golden_tree();
  options.destination = dir / "out";
  options.format = "megatron";
  options.tp = 4;
  options.pp = 2;
  reshard::Conversion(options).run();
  const auto model = reshard::open_model(dir / "out");
  CHECK(model.checkpoint().megatron->iteration == 10);
  CHECK(reshard::digest(model, 1).digest ==
        reshard::digest(reshard::open_model(test::golden("megatron/bloom/hf")), 1).digest);
}
