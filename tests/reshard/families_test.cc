// Every family of the table through every layout that llmctl writes, on the tiny models of
// tests/golden/families.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/json.h"
#include "reshard/compare.h"
#include "reshard/convert.h"
#include "reshard/faster_transformer.h"
#include "reshard/geometries.h"
#include "reshard/manifest.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::reshard;
namespace fs = std::filesystem;

namespace {

std::vector<fs::path> family_models() {
  std::vector<fs::path> models;
  for (const auto& entry : fs::directory_iterator(test::golden("families"))) {
    if (fs::exists(entry.path() / "config.json")) models.push_back(entry.path());
  }
  std::sort(models.begin(), models.end());
  return models;
}

void convert(const fs::path& source, const fs::path& destination, const std::string& format,
             int64_t tp = 1, std::optional<DType> dtype = {}, int jobs = 2,
             uint64_t max_memory = uint64_t{384} << 20) {
  ConvertOptions options;
  options.source = source;
  options.destination = destination;
  options.format = format;
  options.tp = tp;
  options.dtype = dtype;
  options.jobs = jobs;
  options.max_memory = max_memory;
  Conversion(options).run();
}

std::map<std::string, std::string> tree(const fs::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(directory)) {
    files[entry.path().filename().string()] = read_text_file(entry.path(), uint64_t{1} << 30);
  }
  return files;
}

/// What says by which way the weights came here.
void forget_description(std::map<std::string, std::string>& files) {
  files.erase("config.ini");
  files.erase(std::string(kManifestName));
}

bool is_narrow(const Model& model) {
  return model.config().embed_dim() != model.config().hidden_size;
}

}  // namespace

TEST_CASE("families: the goldens cover every row of the table") {
  std::set<std::string> seen;
  for (const fs::path& path : family_models()) seen.insert(open_model(path).config().family);
  for (const Family& family : family_table()) CHECK(seen.count(std::string(family.name)) == 1);
}

TEST_CASE("families: config.json written from a ModelConfig reads back as the same") {
  for (const fs::path& path : family_models()) {
    CAPTURE(path.filename().string());
    const Model model = open_model(path);
    const auto json = write_config(model.family(), model.config());
    CHECK(read_config(model.family(), json, "config.json") == model.config());
  }
}

TEST_CASE("families: FasterTransformer at any tp and back gives the same tensors") {
  for (const fs::path& path : family_models()) {
    CAPTURE(path.filename().string());
    const Model original = open_model(path);
    const std::string fingerprint = digest(original, 2).digest;
    std::map<int64_t, uint64_t> total_bytes;
    test::TempDir dir;
    if (original.config().localized_filtering) {
      CHECK_THROWS_WITH_AS(convert(path, dir / "ft", "ft"),
                           doctest::Contains("no loader computes Yuan's localized filtering"),
                           Error);
      CHECK_FALSE(fs::exists(dir / "ft"));
      continue;
    }
    for (const int64_t tp : {1, 2, 4}) {
      CAPTURE(tp);
      if (original.config().num_attention_heads % tp != 0) continue;
      convert(path, dir / "ft", "ft", tp);
      const fs::path at = dir.path() / "ft" / (std::to_string(tp) + "-gpu");
      const Model ft = open_model(at);
      if (!is_narrow(original)) {
        ModelConfig expected = original.config();
        CHECK(ft.config() == expected);
        CHECK(digest(ft, 2).digest == fingerprint);
        convert(at, dir / ("hf" + std::to_string(tp)), "hf");
        const Model back = open_model(dir / ("hf" + std::to_string(tp)));
        CHECK(digest(back, 1).digest == fingerprint);
        CHECK(back.config() == original.config());
      }
      // Merged to one rank, a split tree is the tree that one rank would have been written as.
      if (tp > 1) {
        convert(at, dir / ("merged" + std::to_string(tp)), "ft", 1);
        auto merged = tree(dir.path() / ("merged" + std::to_string(tp)) / "1-gpu");
        auto direct = tree(dir.path() / "ft" / "1-gpu");
        forget_description(merged);
        forget_description(direct);
        CHECK(merged == direct);
      }
      for (const auto& [name, bytes] : tree(at)) {
        if (name.ends_with(".bin")) total_bytes[tp] += bytes.size();
      }
    }
    const bool replicated = original.config().num_key_value_heads < 4;
    CHECK(total_bytes[1] == total_bytes[2]);
    if (!replicated && total_bytes.count(4)) CHECK(total_bytes[1] == total_bytes[4]);
  }
}

TEST_CASE("families: another split is the same directly and through one rank") {
  for (const char* name : {"llama", "bloom", "gpt_neox", "opt"}) {
    CAPTURE(name);
    test::TempDir dir;
    convert(test::golden(std::string("families/") + name), dir / "a", "ft", 2);
    convert(dir.path() / "a" / "2-gpu", dir / "direct", "ft", 4);
    convert(dir.path() / "a" / "2-gpu", dir / "one", "ft", 1);
    convert(dir.path() / "one" / "1-gpu", dir / "around", "ft", 4);
    auto direct = tree(dir.path() / "direct" / "4-gpu"),
         around = tree(dir.path() / "around" / "4-gpu");
    forget_description(direct);
    forget_description(around);
    CHECK(direct == around);
  }
}

TEST_CASE("families: output bytes do not depend on jobs or memory") {
  for (const char* name : {"llama", "gpt2", "opt-350m"}) {
    CAPTURE(name);
    test::TempDir dir;
    const fs::path source = test::golden(std::string("families/") + name);
    convert(source, dir / "a", "ft", 2, DType::F16, 1);
    convert(source, dir / "b", "ft", 2, DType::F16, 4, 1);
    CHECK(tree(dir.path() / "a" / "2-gpu") == tree(dir.path() / "b" / "2-gpu"));
  }
}

TEST_CASE("families: torch files and shards hold the same model as the single safetensors file") {
  const std::pair<const char*, const char*> variants[] = {{"gpt2", "torch-zip"},
                                                          {"opt", "torch-legacy"},
                                                          {"llama-mha", "torch-sharded"},
                                                          {"llama", "safetensors-sharded"}};
  for (const auto& [name, variant] : variants) {
    CAPTURE(variant);
    const fs::path path = test::golden(std::string("families/") + name);
    CHECK(digest(open_model(path / variant), 1).digest == digest(open_model(path), 1).digest);
  }
}

TEST_CASE("families: Hugging Face to Hugging Face keeps names and bytes and casts on request") {
  for (const fs::path& path : family_models()) {
    CAPTURE(path.filename().string());
    test::TempDir dir;
    const Model original = open_model(path);
    convert(path, dir / "same", "hf");
    const Model same = open_model(dir / "same");
    CHECK(digest(same, 1).digest == digest(original, 1).digest);
    CHECK(same.config() == original.config());
    convert(path, dir / "half", "hf", 1, DType::F16);
    const Model half = open_model(dir / "half");
    DiffOptions exact;
    exact.exact = true;
    CHECK(diff(original, half, {}).differences.empty());
    CHECK_FALSE(diff(original, half, exact).differences.empty());
  }
}

TEST_CASE("families: a model whose tensors do not fit its config is refused by name") {
  test::TempDir dir;
  const auto spoil = [&](const char* name, const char* from, const char* to) {
    const fs::path copy = dir / name;
    fs::create_directory(copy);
    fs::copy_file(test::golden("families/llama/model.safetensors"), copy / "model.safetensors");
    std::string text = read_text_file(test::golden("families/llama/config.json"), 1 << 16);
    const size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    text.replace(at, std::string(from).size(), to);
    File file = File::create(copy / "config.json");
    file.write_at(std::as_bytes(std::span(text)), 0);
    return copy;
  };
  const auto refusal = [](const fs::path& path) -> std::string {
    try {
      open_model(path);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kInvalidInput);
      return error.what();
    }
    return "accepted";
  };
  CHECK(
      refusal(spoil("arch", "LlamaForCausalLM", "MambaForCausalLM")).find("unknown model family") !=
      std::string::npos);
  CHECK(refusal(spoil("vocab", "\"vocab_size\": 97", "\"vocab_size\": 98")).find("shape") !=
        std::string::npos);
  const std::string more = "\"num_hidden_layers\": ";
  const std::string text = read_text_file(test::golden("families/llama/config.json"), 1 << 16);
  const char digit = text[text.find(more) + more.size()];
  const std::string now = more + digit;
  CHECK(refusal(spoil("layers", now.c_str(), (more + "9").c_str())).find("is missing") !=
        std::string::npos);
  CHECK(refusal(spoil("fewer", now.c_str(), (more + "1").c_str())).find("only 1 layers") !=
        std::string::npos);
  CHECK(refusal(spoil("negative", now.c_str(), (more + "-1").c_str())).find("num_hidden_layers") !=
        std::string::npos);
}

TEST_CASE("families: damaged FasterTransformer trees are refused naming the file") {
  test::TempDir dir;
  convert(test::golden("families/bloom"), dir / "good", "ft", 2);
  const fs::path good = dir.path() / "good" / "2-gpu";
  const auto refusal = [&](const char* name, const auto& damage) -> std::string {
    const fs::path copy = dir.path() / name / "2-gpu";
    fs::create_directories(copy.parent_path());
    fs::copy(good, copy);
    damage(copy);
    try {
      open_model(copy);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kInvalidInput);
      return error.what();
    }
    return "accepted";
  };
  const std::string split = "model.layers.1.mlp.dense_h_to_4h.weight";
  CHECK(refusal("missing", [&](const fs::path& p) {
          fs::remove(p / (split + ".1.bin"));
        }).find(split) != std::string::npos);
  CHECK(refusal("gone", [&](const fs::path& p) {
          fs::remove(p / (split + ".0.bin"));
          fs::remove(p / (split + ".1.bin"));
        }).find(split) != std::string::npos);
  // A file that is missing in every layer is missing all the same.
  CHECK(refusal("no-biases", [&](const fs::path& p) {
          for (const auto& entry : fs::directory_iterator(p)) {
            const std::string name = entry.path().filename().string();
            if (name.ends_with("attention.dense.bias.bin")) fs::remove(entry.path());
          }
        }).find("attention.dense.bias") != std::string::npos);
  for (const int64_t by : {-4, 4}) {
    CHECK(refusal(by < 0 ? "short" : "long", [&](const fs::path& p) {
            fs::resize_file(p / "model.wte.bin",
                            static_cast<uintmax_t>(
                                static_cast<int64_t>(fs::file_size(p / "model.wte.bin")) + by));
          }).find("wte") != std::string::npos);
  }
  CHECK(refusal("unknown", [&](const fs::path& p) {
          fs::copy_file(p / "model.wte.bin", p / "model.extra.bin");
        }).find("extra") != std::string::npos);
}

TEST_CASE("families: an overflowing cast is counted clamped or refused as asked") {
  // A BF16-sized value in an F32 model does not fit F16.
  test::TempDir dir;
  const fs::path copy = dir / "big";
  fs::create_directory(copy);
  fs::copy_file(test::golden("families/llama/config.json"), copy / "config.json");
  std::string bytes = read_text_file(test::golden("families/llama/model.safetensors"), 1 << 24);
  const float big = 1e6F;
  std::memcpy(bytes.data() + bytes.size() - sizeof big, &big, sizeof big);
  {
    File file = File::create(copy / "model.safetensors");
    file.write_at(std::as_bytes(std::span(bytes)), 0);
  }
  ConvertOptions options;
  options.source = copy;
  options.format = "hf";
  options.dtype = DType::F16;
  for (const OnOverflow policy : {OnOverflow::kInf, OnOverflow::kClamp}) {
    options.on_overflow = policy;
    options.destination = dir / (policy == OnOverflow::kInf ? "inf" : "clamp");
    const ConvertSummary summary = Conversion(options).run();
    REQUIRE(summary.overflows.size() == 1);
    CHECK(summary.overflows.front().second == 1);
  }
  options.on_overflow = OnOverflow::kError;
  options.destination = dir / "error";
  CHECK_THROWS_AS(Conversion(options).run(), Error);
  CHECK_FALSE(fs::exists(dir / "error"));
  CHECK(fs::directory_iterator(dir.path()) != fs::directory_iterator());
  for (const auto& entry : fs::directory_iterator(dir.path())) {
    CHECK(entry.path().filename().string().find("llmctl-") == std::string::npos);
  }
}

TEST_CASE("families: a config value of the wrong kind is refused by its key") {
  const std::pair<const char*, nlohmann::ordered_json> bad[] = {
      {"gpt_neox", {{"use_parallel_residual", "yes"}}},
      {"gpt_neox", {{"rotary_pct", "much"}}},
      {"gpt_neox", {{"rotary_pct", 1e300}}},
      {"gpt2", {{"scale_attn_weights", 1}}},
      {"opt", {{"_remove_final_layer_norm", "no"}}},
      {"qwen2", {{"max_window_layers", 1.5}}},
      {"llama", {{"rms_norm_eps", "small"}}},
      {"llama", {{"hidden_size", -1}}},
      {"llama", {{"num_attention_heads", 0}}},
      {"llama", {{"head_dim", 1ULL << 63}}},
      {"llama", {{"eos_token_id", 1ULL << 63}}},
      {"llama", {{"hidden_act", "tanh"}}},
      {"yuan", {{"use_shareqk", true}}},
      {"yuan", {{"use_shareqk", 1}}},
      {"yuan", {{"use_yarn", true}}},
      {"yuan", {{"rope_precision", "bf16"}}},
      {"yuan", {{"num_key_value_heads", 8}}},
      {"yuan", {{"num_attention_heads", 1}}},
      {"yuan", {{"lf_conv2d_group", 3}}},
      {"yuan", {{"true_vocab_size", 135041}}},
  };
  for (const auto& [family, change] : bad) {
    CAPTURE(change.dump());
    nlohmann::ordered_json json = {{"model_type", family}};
    json.update(change);
    try {
      read_config(*find_family_by_name(family), json, "config.json");
      FAIL_CHECK("accepted");
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kInvalidInput);
    }
  }
}

TEST_CASE("families: Yuan's rotary precision follows its dtype unless it is said") {
  const Family& yuan = *find_family_by_name("yuan");
  const auto in_bf16 = [&](const nlohmann::ordered_json& json) {
    return read_config(yuan, json, "config.json").rope_in_bf16;
  };
  CHECK(in_bf16({{"model_type", "yuan"}}));
  CHECK(in_bf16({{"torch_dtype", "bfloat16"}}));
  CHECK_FALSE(in_bf16({{"torch_dtype", "float32"}}));
  CHECK_FALSE(in_bf16({{"torch_dtype", "bfloat16"}, {"rope_precision", "fp32"}}));
  CHECK(in_bf16({{"torch_dtype", "float32"}, {"rope_precision", "megatron_bf16"}}));

  // Rounding the weights does not change which arithmetic they were trained for.
  test::TempDir dir;
  convert(test::golden("families/yuan"), dir / "narrow", "hf", 1, DType::BF16);
  CHECK_FALSE(open_model(dir / "narrow").config().rope_in_bf16);
  convert(dir / "narrow", dir / "wide", "hf", 1, DType::F32);
  CHECK_FALSE(open_model(dir / "wide").config().rope_in_bf16);
}

TEST_CASE("families: Yuan ends at eod_token where eos_token_id is not written") {
  const Family& yuan = *find_family_by_name("yuan");
  const auto stops = [&](const nlohmann::ordered_json& json) {
    return read_config(yuan, json, "config.json").eos_token_ids;
  };
  CHECK(stops({{"model_type", "yuan"}}) == std::vector<int64_t>{77185});
  CHECK(stops({{"eod_token", 5}}) == std::vector<int64_t>{5});
  CHECK(stops({{"eod_token", 5}, {"eos_token_id", 6}}) == std::vector<int64_t>{6});
  CHECK(stops({{"eod_token", 5}, {"eos_token_id", nullptr}}).empty());
}

TEST_CASE("families: rope scaling is completed as transformers does") {
  const Family& llama = *find_family_by_name("llama");
  const auto read = [&](const char* scaling) {
    auto json = write_config(llama, make_config(llama, nullptr, {}));
    json["max_position_embeddings"] = 4096;
    json["original_max_position_embeddings"] = 512;
    json["rope_scaling"] = formats::parse_json(scaling, "scaling");
    return read_config(llama, json, "config.json").rope_scaling;
  };
  // The length beside the scaling wins over the one inside.
  const auto longrope = read(R"({"rope_type": "longrope", "short_factor": [1], "long_factor": [2],
               "factor": 0.5, "original_max_position_embeddings": 64})");
  CHECK(longrope.original_max_position_embeddings == 512);
  CHECK(longrope.attention_factor == 1.0);
  CHECK(read(R"({"rope_type": "yarn", "factor": null})").factor == 8.0);
  CHECK(read(R"({"rope_type": "yarn", "factor": 2.0})").factor == 2.0);
}

TEST_CASE("families: part of a head turns only where transformers turns a part") {
  const auto rotary_dim = [](const char* family, const char* rope) {
    const auto json = nlohmann::ordered_json::parse(
        std::string(
            R"({"hidden_size":64,"num_attention_heads":4,"num_key_value_heads":4,"rope_parameters":)") +
        rope + "}");
    return read_config(*find_family_by_name(family), json, "config.json").rotary_dim;
  };
  const char* const half = R"({"rope_type":"default","partial_rotary_factor":0.5})";
  CHECK(rotary_dim("gpt_neox", half) == 8);
  for (const char* family : {"llama", "mistral", "qwen2"}) {
    CAPTURE(family);
    CHECK(rotary_dim(family, half) == 16);
    CHECK_THROWS_WITH_AS(
        rotary_dim(family, R"({"rope_type":"linear","factor":2,"partial_rotary_factor":0.5})"),
        doctest::Contains("partial_rotary_factor"), Error);
  }
}

TEST_CASE("families: GPT-2 and GPT-J take the general names of their sizes") {
  for (const char* name : {"gpt2", "gptj"}) {
    CAPTURE(name);
    const Family& family = *find_family_by_name(name);
    auto json = write_config(family, make_config(family, nullptr, {}));
    for (const char* key : {"n_embd", "n_layer", "n_head", "n_positions"}) json.erase(key);
    json["hidden_size"] = 64;
    json["num_hidden_layers"] = 3;
    json["num_attention_heads"] = 4;
    json["max_position_embeddings"] = 99;
    json["rotary_dim"] = 8;
    const ModelConfig config = read_config(family, json, "config.json");
    CHECK(config.hidden_size == 64);
    CHECK(config.num_hidden_layers == 3);
    CHECK(config.num_attention_heads == 4);
    CHECK(config.max_position_embeddings == 99);
  }
}
