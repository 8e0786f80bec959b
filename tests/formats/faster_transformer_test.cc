#include "formats/faster_transformer.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>

#include "formats/core/error.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;

fs::path original() { return test::golden("faster_transformer/2-gpu"); }

/// A copy of the original converter's output to break.
class Copy {
 public:
  explicit Copy(const std::string& name = "2-gpu") : path_(dir_ / name) {
    fs::copy(original(), path_);
  }
  const fs::path& path() const { return path_; }
  fs::path parent() const { return dir_.path(); }
  fs::path operator/(const std::string& name) const { return path_ / name; }

  void replace_in_config(const std::string& from, const std::string& to) const {
    std::string text = test::read_bytes(path_ / "config.ini");
    const size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    test::write_bytes(path_ / "config.ini", text.replace(at, from.size(), to));
  }

  /// The one line with which reading is refused.
  std::string refusal() const { return refusal_of(path_); }
  static std::string refusal_of(const fs::path& path) {
    try {
      read_faster_transformer(path);
    } catch (const Error& e) {
      CHECK(e.code() == ErrorCode::kInvalidInput);
      const std::string line = e.what();
      CHECK(line.find('\n') == std::string::npos);
      return line;
    }
    return "accepted";
  }

 private:
  test::TempDir dir_;
  fs::path path_;
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

const std::string kSplit = "model.layers.0.mlp.dense_h_to_4h.weight";

TEST_CASE("ft: takes file names apart at the rank") {
  const auto parse = [](const char* name) {
    const auto parsed = parse_ft_file_name(name);
    return parsed ? parsed->tensor + " " + std::to_string(parsed->tp_rank) : "none";
  };
  CHECK(parse("model.wte.bin") == "model.wte -1");
  CHECK(parse("model.final_layernorm.weight.bin") == "model.final_layernorm.weight -1");
  CHECK(parse("model.layers.3.mlp.dense_h_to_4h.weight.1.bin") ==
        "model.layers.3.mlp.dense_h_to_4h.weight 1");
  CHECK(parse("model.layers.30.attention.dense.bias.bin") ==
        "model.layers.30.attention.dense.bias -1");
  CHECK(parse("model.layers.0.attention.query_key_value.weight.int8.10.bin") ==
        "model.layers.0.attention.query_key_value.weight.int8 10");
  CHECK(parse("model.prompt_table.task 1.weight.bin") == "model.prompt_table.task 1.weight -1");
  for (const char* name :
       {"model.bin", "model..bin", "model.0.bin", "model.wte.01.bin",
        "model.wte.99999999999999999999.bin", "wte.bin", "model.wte.BIN", "x.bin"}) {
    CAPTURE(name);
    CHECK(parse(name) == "none");
  }
}

TEST_CASE("ft: takes directory names apart") {
  CHECK(parse_ft_directory_name("1-gpu") == 1);
  CHECK(parse_ft_directory_name("16-gpu") == 16);
  for (const char* name : {"0-gpu", "01-gpu", "-gpu", "gpu", "x1-gpu", "1-gpus", "-1-gpu",
                           "unfusedQKV-2-gpu", "99999999999-gpu"}) {
    CAPTURE(name);
    CHECK(!parse_ft_directory_name(name));
  }
}

TEST_CASE("ft: reads what the original converter wrote") {
  const Checkpoint checkpoint = read_faster_transformer(original());
  CHECK(checkpoint.format == "ft");
  CHECK(checkpoint.tensor_parallel_size == 2);
  CHECK(checkpoint.pipeline_parallel_size == 1);
  CHECK(checkpoint.notes.empty());
  CHECK(checkpoint.texts.at("config.ini") == test::read_bytes(original() / "config.ini"));
  // 4 + L (6 + 6 T) files for GPT-2.
  CHECK(checkpoint.tensors.size() == 4 + 6 + 6 * 2);
  CHECK(checkpoint.files.size() == checkpoint.tensors.size());
  const std::map<std::string, int64_t> elements = {
      {"model.wte", 11 * 8},
      {"model.wpe", 6 * 8},
      {"model.final_layernorm.bias", 8},
      {"model.layers.0.attention.query_key_value.weight", 8 * 3 * 8 / 2},
      {"model.layers.0.attention.query_key_value.bias", 3 * 8 / 2},
      {"model.layers.0.attention.dense.bias", 8},
      {kSplit, 8 * 32 / 2}};
  for (const auto& [name, count] : elements) {
    CAPTURE(name);
    std::vector<int> ranks;
    for (const StoredTensor& tensor : checkpoint.tensors) {
      if (tensor.name != name) continue;
      ranks.push_back(tensor.tp_rank);
      CHECK(tensor.dtype == DType::F16);
      CHECK(tensor.shape == Shape{count});
      CHECK(tensor.offset_bytes == 0);
      CHECK(checkpoint.files[static_cast<size_t>(tensor.file)].size_bytes == tensor.num_bytes());
    }
    const bool is_split = contains(name, "query_key_value") || name == kSplit;
    CHECK(ranks == (is_split ? std::vector<int>{0, 1} : std::vector<int>{-1}));
  }
}

TEST_CASE("ft: finds the checkpoint by its parent and by an alias") {
  const Copy copy;
  CHECK(read_faster_transformer(copy.parent()).tensor_parallel_size == 2);
  CHECK(read_faster_transformer(copy.parent() / "2-gpu/").tensor_parallel_size == 2);
  fs::create_directory_symlink(copy.path(), copy.parent() / "current");
  CHECK(read_faster_transformer(copy.parent() / "current").tensor_parallel_size == 2);
  CHECK(detect_faster_transformer(copy.path()));
  CHECK(detect_faster_transformer(copy.parent()));
  CHECK(!detect_faster_transformer(copy / "config.ini"));
  CHECK(!detect_faster_transformer(copy / "none"));
}

TEST_CASE("ft: refuses a parent of several naming them") {
  const Copy copy;
  fs::copy(copy.path(), copy.parent() / "4-gpu");
  const std::string line = Copy::refusal_of(copy.parent());
  CHECK(contains(line, "2-gpu, 4-gpu"));
  fs::create_directory(copy.parent() / "empty");
  CHECK(contains(Copy::refusal_of(copy.parent() / "empty"), "no model.*.bin files"));
}

TEST_CASE("ft: a folder of any name takes its ranks from config.ini or the files") {
  const Copy copy("mine");
  CHECK(read_faster_transformer(copy.path()).tensor_parallel_size == 2);
  copy.replace_in_config("tensor_para_size = 2\n", "");
  CHECK(read_faster_transformer(copy.path()).tensor_parallel_size == 2);
}

TEST_CASE("ft: refuses ranks that contradict each other") {
  {
    const Copy copy("4-gpu");
    CHECK(contains(copy.refusal(), "tensor_para_size is 2, but the directory is for 4"));
    copy.replace_in_config("tensor_para_size = 2\n", "");
    CHECK(contains(copy.refusal(), ".2.bin: missing"));
  }
  {
    const Copy copy("1-gpu");
    copy.replace_in_config("tensor_para_size = 2\n", "");
    CHECK(contains(copy.refusal(), ".1.bin: rank 1 in a checkpoint of 1"));
  }
  {
    const Copy copy("mine");
    copy.replace_in_config("tensor_para_size = 2", "tensor_para_size = 0");
    CHECK(contains(copy.refusal(), "tensor_para_size is 0"));
  }
  {
    const Copy copy;
    fs::copy(copy / (kSplit + ".1.bin"), copy / (kSplit + ".2.bin"));
    CHECK(contains(copy.refusal(), kSplit + ".2.bin: rank 2 in a checkpoint of 2"));
  }
  {
    const Copy copy;
    fs::remove(copy / (kSplit + ".0.bin"));
    CHECK(contains(copy.refusal(), kSplit + ".0.bin: missing"));
  }
  {
    const Copy copy;
    fs::copy(copy / (kSplit + ".0.bin"), copy / (kSplit + ".bin"));
    CHECK(contains(copy.refusal(), kSplit + ".bin: a whole tensor that is also split"));
  }
  {
    const Copy copy;
    fs::rename(copy / (kSplit + ".0.bin"), copy / (kSplit + ".00.bin"));
    CHECK(contains(copy.refusal(), "not a plain number"));
  }
}

TEST_CASE("ft: refuses files of a wrong size") {
  {
    const Copy copy;
    fs::resize_file(copy / "model.wte.bin", 175);
    CHECK(contains(copy.refusal(), "model.wte.bin: 175 bytes are no whole number of fp16 values"));
  }
  {
    const Copy copy;
    fs::resize_file(copy / "model.wte.bin", 0);
    CHECK(contains(copy.refusal(), "model.wte.bin: an empty file"));
  }
  {
    const Copy copy;
    fs::resize_file(copy / (kSplit + ".1.bin"), 254);
    CHECK(contains(copy.refusal(), kSplit + ".1.bin: 254 bytes, but rank 0 of the tensor has 256"));
  }
  {
    const Copy copy;
    test::write_bytes(copy / "model.wte.bin", "version https://git-lfs.github.com/spec/v1\n");
    CHECK(contains(copy.refusal(), "Git LFS pointer"));
  }
}

TEST_CASE("ft: the type of the weights must be known") {
  for (const auto& [text, dtype] : {std::pair{"fp32", DType::F32},
                                    {"fp16", DType::F16},
                                    {"bf16", DType::BF16},
                                    {"fp16 # half", DType::F16}}) {
    const Copy copy;
    copy.replace_in_config("= fp16", std::string("= ") + text);
    CHECK(read_faster_transformer(copy.path()).tensors.front().dtype == dtype);
  }
  for (const char* text : {"fp8", "FP16", "", "fp16 or fp32"}) {
    CAPTURE(text);
    const Copy copy;
    copy.replace_in_config("= fp16", std::string("= ") + text);
    CHECK(contains(copy.refusal(), "weight_data_type"));
  }
  const Copy copy;
  copy.replace_in_config("weight_data_type = fp16\n", "");
  CHECK(contains(copy.refusal(), "config.ini: no section has weight_data_type"));
  fs::remove(copy / "config.ini");
  CHECK(contains(copy.refusal(), "config.ini: no such file"));
}

TEST_CASE("ft: sections of a run beside the model's do not count") {
  const Copy copy;
  copy.replace_in_config(
      "[gpt]", "[ft_instance_hyperparameter]\ntensor_para_size = 8\ndata_type = fp32\n\n[gpt]");
  const Checkpoint checkpoint = read_faster_transformer(copy.path());
  CHECK(checkpoint.tensor_parallel_size == 2);
  CHECK(checkpoint.tensors.front().dtype == DType::F16);
  copy.replace_in_config("[gpt]", "[gptj]\nweight_data_type = fp32\n[gpt]");
  CHECK(contains(copy.refusal(), "weight_data_type is both 'fp32' and 'fp16'"));
}

TEST_CASE("ft: drops int8 extras with a note and keeps other unknown files") {
  const Copy copy;
  const std::string name = "model.layers.0.attention.query_key_value";
  for (const char* extra : {".weight.int8.0.bin", ".weight.int8.1.bin", ".scale.bin",
                            ".scale_inter.bin", ".scale_out.bin"}) {
    test::write_bytes(copy / (name + extra), "odd");
  }
  test::write_bytes(copy / "args.txt", "a:b\n");
  test::write_bytes(copy / "model.prompt_table.squad.weight.bin", "12");
  test::write_bytes(copy / "tokenizer.json", "{}");
  test::write_bytes(copy / "generation_config.json", "{\"eos_token_id\":2}");
  const Checkpoint checkpoint = read_faster_transformer(copy.path());
  REQUIRE(checkpoint.notes.size() == 1);
  CHECK(contains(checkpoint.notes[0], "5 int8 weight and scale files"));
  CHECK(checkpoint.tensors.size() == 23);
  CHECK(checkpoint.side_files.size() == 2);
  CHECK(checkpoint.texts.at("generation_config.json") == "{\"eos_token_id\":2}");
}

TEST_CASE("ft: refuses links that lead out") {
  const Copy copy;
  const test::TempDir other;
  test::write_bytes(other / "secret", "12345678");
  fs::remove(copy / "model.wte.bin");
  fs::create_symlink(other / "secret", copy / "model.wte.bin");
  CHECK(contains(copy.refusal(), "leads out of the directory"));
  fs::remove(copy / "model.wte.bin");
  fs::create_symlink("model.wpe.bin", copy / "model.wte.bin");
  CHECK(copy.refusal() == "accepted");
  fs::remove(copy / "model.wte.bin");
  fs::create_symlink("nothing", copy / "model.wte.bin");
  CHECK(contains(copy.refusal(), "leads nowhere"));
}

TEST_CASE("ft: places one raw file per tensor and rank") {
  const std::vector<TargetTensor> tensors = {{"model.wte", DType::F16, {11, 8}, -1, -1},
                                             {kSplit, DType::F16, {8, 16}, 0, -1},
                                             {kSplit, DType::F16, {8, 16}, 1, -1}};
  const auto plans = place_faster_transformer(tensors, WriteOptions{});
  REQUIRE(plans.size() == 3);
  for (const FilePlan& plan : plans) {
    CAPTURE(plan.name);
    CHECK(plan.size_bytes == fs::file_size(original() / plan.name));
    CHECK(plan.literals.empty());
    REQUIRE(plan.placements.size() == 1);
    CHECK(plan.placements[0].offset_bytes == 0);
  }
  CHECK(plans[2].placements[0].tensor == 2);
  for (const char* name : {"../model.wte", "a/b"}) {
    CHECK_THROWS_AS(
        place_faster_transformer(std::vector<TargetTensor>{{name, DType::F16, {1}}}, {}), Error);
  }
  const std::vector<TargetTensor> twice = {{"a", DType::F16, {1}}, {"a", DType::F16, {1}}};
  CHECK_THROWS_AS(place_faster_transformer(twice, {}), Error);
}

}  // namespace
}  // namespace llmctl::formats
