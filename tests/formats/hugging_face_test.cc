#include "formats/hugging_face.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "formats/core/error.h"
#include "formats/registry.h"
#include "formats/safetensors.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string refusal_of(const fs::path& path) {
  try {
    read_hugging_face(path);
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kInvalidInput);
    const std::string line = e.what();
    CHECK(line.find('\n') == std::string::npos);
    return line;
  }
  return "accepted";
}

/// A safetensors file of F32 tensors with two elements each.
std::string safetensors_of(const std::vector<std::string>& names) {
  std::vector<TargetTensor> tensors;
  for (const std::string& name : names) tensors.push_back({name, DType::F32, {2}, -1, -1});
  const FilePlan plan = place_safetensors(tensors, WriteOptions{}).front();
  std::string bytes = plan.literals.front().bytes;
  bytes.resize(plan.size_bytes, 'x');
  return bytes;
}

/// A model folder made of files given as text.
class Model {
 public:
  Model() { write("config.json", "{\"model_type\":\"none\"}"); }
  void write(const std::string& name, const std::string& bytes) const {
    test::write_bytes(dir_ / name, bytes);
  }
  void write_index(const std::string& map, const std::string& metadata = "{}") const {
    write("model.safetensors.index.json",
          "{\"metadata\":" + metadata + ",\"weight_map\":{" + map + "}}");
  }
  const fs::path& path() const { return dir_.path(); }
  fs::path operator/(const std::string& name) const { return dir_ / name; }

 private:
  test::TempDir dir_;
};

const std::string kOne = "model-00001-of-00002.safetensors";
const std::string kTwo = "model-00002-of-00002.safetensors";
const std::string kMap = "\"a\":\"" + kOne + "\",\"b\":\"" + kOne + "\",\"c\":\"" + kTwo + "\"";

void write_two_shards(const Model& model) {
  model.write(kOne, safetensors_of({"a", "b"}));
  model.write(kTwo, safetensors_of({"c"}));
  model.write_index(kMap, "{\"total_size\":24}");
}

TEST_CASE("hf: reads a sharded directory as huggingface_hub wrote it") {
  const Checkpoint checkpoint = read_hugging_face(test::golden("safetensors/sharded"));
  CHECK(checkpoint.format == "hf");
  CHECK(checkpoint.tensor_parallel_size == 1);
  CHECK(checkpoint.files.size() == 3);
  CHECK(checkpoint.tensors.size() == 6);
  CHECK(checkpoint.notes.empty());
  CHECK(checkpoint.texts.at("config.json") == "{\"model_type\": \"none\"}\n");
  for (const StoredTensor& tensor : checkpoint.tensors) {
    CAPTURE(tensor.name);
    const CheckpointFile& file = checkpoint.files.at(static_cast<size_t>(tensor.file));
    CHECK(is_inside(tensor.offset_bytes, tensor.num_bytes(), file.size_bytes));
    CHECK(file.size_bytes == fs::file_size(file.path));
  }
}

TEST_CASE("hf: reads sharded torch files") {
  const Checkpoint checkpoint = read_hugging_face(test::golden("hugging_face/torch-sharded"));
  CHECK(checkpoint.files.size() == 2);
  REQUIRE(checkpoint.tensors.size() == 3);
  CHECK(checkpoint.notes.empty());
  const auto head = std::find_if(checkpoint.tensors.begin(), checkpoint.tensors.end(),
                                 [](const auto& t) { return t.name == "head.weight"; });
  REQUIRE(head != checkpoint.tensors.end());
  CHECK(head->shape == Shape{4, 3});
  CHECK(!head->is_contiguous());
  CHECK(head->file == 1);
}

TEST_CASE("hf: reads the trained models of the data set") {
  const auto models = test::test_data("models");
  if (!models) return;
  for (const char* name : {"gpt2-nano-sort", "llama-stories260K", "opt-tinystories-char59"}) {
    CAPTURE(name);
    const Checkpoint checkpoint = read_checkpoint(*models / name);
    CHECK(checkpoint.format == "hf");
    CHECK(checkpoint.tensors.size() > 10);
  }
  const Checkpoint llama = read_checkpoint(*models / "llama-stories260K");
  REQUIRE(llama.side_files.size() == 1);
  CHECK(llama.side_files[0].filename() == "tokenizer.model");
}

TEST_CASE("hf: takes a weights file with config.json beside it") {
  const fs::path folder = test::golden("hugging_face/torch-sharded");
  CHECK(read_hugging_face(folder / "pytorch_model-00001-of-00002.bin").tensors.size() == 2);
  const Model model;
  model.write("any.safetensors", safetensors_of({"a"}));
  const Checkpoint checkpoint = read_checkpoint(model / "any.safetensors");
  CHECK(checkpoint.format == "hf");
  CHECK(checkpoint.tensors.size() == 1);
  CHECK(checkpoint.texts.count("config.json") == 1);
  fs::remove(model / "config.json");
  CHECK(contains(refusal_of(model / "any.safetensors"), "config.json: no such file"));
  CHECK(contains(refusal_of(model.path()), "config.json: no such file"));
}

TEST_CASE("hf: prefers one file to an index and safetensors to torch") {
  const Model model;
  write_two_shards(model);
  model.write("pytorch_model.bin", "not looked at");
  CHECK(read_hugging_face(model.path()).tensors.size() == 3);
  model.write("model.safetensors", safetensors_of({"z"}));
  const Checkpoint checkpoint = read_hugging_face(model.path());
  REQUIRE(checkpoint.tensors.size() == 1);
  CHECK(checkpoint.tensors[0].name == "z");
  CHECK(checkpoint.notes.size() == 1);
}

TEST_CASE("hf: one file of another name is taken and several are refused") {
  const Model model;
  model.write("consolidated.safetensors", safetensors_of({"a"}));
  CHECK(read_hugging_face(model.path()).tensors.size() == 1);
  model.write("more.safetensors", safetensors_of({"b"}));
  const std::string line = refusal_of(model.path());
  CHECK(contains(line, "2 weights files"));
  CHECK(contains(line, "fetch model.safetensors.index.json"));
}

TEST_CASE("hf: a missing shard is named with what it holds") {
  const Model model;
  write_two_shards(model);
  fs::remove(model / kOne);
  const std::string line = refusal_of(model.path());
  CHECK(contains(line, kOne + ": missing: the index says that it holds 2 tensors"));
  model.write(kOne, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n");
  CHECK(contains(refusal_of(model.path()), kOne));
  CHECK(contains(refusal_of(model.path()), "Git LFS pointer"));
}

TEST_CASE("hf: index and shards must agree") {
  const Model model;
  write_two_shards(model);
  REQUIRE(refusal_of(model.path()) == "accepted");

  model.write_index(kMap + ",\"d\":\"" + kTwo + "\"");
  CHECK(contains(refusal_of(model.path()), "tensor 'd' is said to lie in '" + kTwo + "'"));

  model.write_index("\"a\":\"" + kTwo + "\",\"b\":\"" + kOne + "\",\"c\":\"" + kTwo + "\"");
  CHECK(contains(refusal_of(model.path()), "but lies in '" + kOne + "'"));

  model.write_index(kMap);
  model.write(kTwo, safetensors_of({"a", "c"}));
  CHECK(contains(refusal_of(model.path()), "tensor 'a' lies also in '" + kTwo + "'"));
}

TEST_CASE("hf: unlisted tensors and a wrong total are notes") {
  const Model model;
  write_two_shards(model);
  model.write(kTwo, safetensors_of({"c", "extra"}));
  const Checkpoint extra = read_hugging_face(model.path());
  CHECK(extra.tensors.size() == 4);
  REQUIRE(extra.notes.size() == 1);
  CHECK(contains(extra.notes[0], "1 tensor in the shards not listed, first 'extra'"));

  write_two_shards(model);
  model.write_index(kMap, "{\"total_size\":25,\"other\":[1]}");
  const Checkpoint total = read_hugging_face(model.path());
  REQUIRE(total.notes.size() == 1);
  CHECK(contains(total.notes[0], "total_size is 25, the tensors listed have 24 bytes"));
  // Old writers gave a float; it says nothing exact.
  model.write_index(kMap, "{\"total_size\":24.0}");
  CHECK(read_hugging_face(model.path()).notes.empty());
}

TEST_CASE("hf: refuses each bad index with one clear line") {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(test::golden("bad/hf-index"))) {
    CAPTURE(entry.path());
    const test::ExactBuffer buffer(test::read_bytes(entry.path()));
    try {
      parse_weight_index(buffer.bytes(), "index");
      FAIL_CHECK("accepted");
    } catch (const Error& e) {
      CHECK(e.code() == ErrorCode::kInvalidInput);
      CHECK(std::string(e.what()).rfind("index: ", 0) == 0);
      CHECK(std::string(e.what()).find('\n') == std::string::npos);
    }
    const Model model;
    model.write("a", "x");
    fs::copy(entry.path(), model / "model.safetensors.index.json");
    CHECK(refusal_of(model.path()) != "accepted");
    ++count;
  }
  CHECK(count == 19);
}

TEST_CASE("hf: every prefix of an index is refused") {
  const std::string text =
      test::read_bytes(test::golden("safetensors/sharded/model.safetensors.index.json"));
  const WeightIndex index = parse_weight_index(test::ExactBuffer(text).bytes(), "index");
  CHECK(index.shards.size() == 3);
  CHECK(index.entries.size() == 6);
  CHECK(index.entries[0].tensor == "größe \x7f");
  CHECK(index.has_total_size);
  CHECK(index.total_size == 2322);
  // Only the final newline may be missing.
  for (size_t size = 0; size + 1 < text.size(); ++size) {
    CAPTURE(size);
    const test::ExactBuffer buffer(text.substr(0, size));
    CHECK_THROWS_AS(parse_weight_index(buffer.bytes(), "index"), Error);
  }
}

TEST_CASE("hf: a huge hostile index costs little time and memory") {
  const Model model;
  for (const auto& [start, repeated] : {std::pair<std::string, std::string>{"{\"x\":[", "[],"},
                                        {"{\"x\":", "["},
                                        {"{\"weight_map\":{\"", "n"},
                                        {"{\"weight_map\":{\"a\":\"b\"", ",\"a\":\"b\""}}) {
    std::string text = start;
    while (text.size() < size_t{40} << 20) text += repeated;
    model.write("model.safetensors.index.json", text);
    text = {};
    text.shrink_to_fit();
    CAPTURE(start);
    const test::Cost cost = test::measure([&] { CHECK(refusal_of(model.path()) != "accepted"); });
    CAPTURE(cost.peak_growth_bytes);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    CHECK(cost.peak_growth_bytes < int64_t{64} << 20);
#endif
  }
  fs::resize_file(model / "model.safetensors.index.json", uint64_t{1} << 40);
  CHECK(contains(refusal_of(model.path()), "an index has at most"));
}

TEST_CASE("hf: links may stay inside or follow the layout of the cache") {
  const test::TempDir cache;
  const fs::path snapshot = cache / "models--a--b/snapshots/0123";
  const fs::path blobs = cache / "models--a--b/blobs";
  fs::create_directories(snapshot);
  fs::create_directories(blobs);
  test::write_bytes(blobs / "c0", "{}");
  test::write_bytes(blobs / "w0", safetensors_of({"a"}));
  fs::create_symlink("../../blobs/c0", snapshot / "config.json");
  fs::create_symlink("../../blobs/w0", snapshot / "model.safetensors");
  CHECK(refusal_of(snapshot) == "accepted");

  const test::TempDir outside;
  test::write_bytes(outside / "w", safetensors_of({"a"}));
  fs::remove(snapshot / "model.safetensors");
  fs::create_symlink(outside / "w", snapshot / "model.safetensors");
  CHECK(contains(refusal_of(snapshot), "leads out of the directory"));

  const Model model;
  fs::create_symlink(outside / "w", model / kTwo);
  model.write_index("\"a\":\"" + kTwo + "\"");
  CHECK(contains(refusal_of(model.path()), "leads out of the directory"));
  fs::remove(model / kTwo);
  fs::create_symlink("w", model / kTwo);
  CHECK(contains(refusal_of(model.path()), "leads nowhere"));
  model.write("w", safetensors_of({"a"}));
  CHECK(refusal_of(model.path()) == "accepted");
  fs::create_symlink("/etc/passwd", model / "tokenizer.json");
  CHECK(contains(refusal_of(model.path()), "tokenizer.json: a symbolic link that leads out"));
}

TEST_CASE("hf: carries tokenizer and generation files along") {
  const Model model;
  model.write("model.safetensors", safetensors_of({"a"}));
  for (const char* name :
       {"tokenizer.json", "tokenizer.model", "merges.txt", "qwen.tiktoken", "chat_template.jinja",
        "generation_config.json", "README.md", "preprocessor_config.json", "training_args.bin"}) {
    model.write(name, "{}");
  }
  fs::create_directory(model / "vocab.json");
  const Checkpoint checkpoint = read_hugging_face(model.path());
  std::vector<std::string> names;
  for (const fs::path& path : checkpoint.side_files) names.push_back(path.filename().string());
  CHECK(names == std::vector<std::string>{"chat_template.jinja", "generation_config.json",
                                          "merges.txt", "qwen.tiktoken", "tokenizer.json",
                                          "tokenizer.model"});
  CHECK(checkpoint.texts.at("generation_config.json") == "{}");
}

}  // namespace
}  // namespace llmctl::formats
