// Tokenizers and their components against what the Python libraries make of the same texts.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "runtime/tokenizer/decoder.h"
#include "runtime/tokenizer/normalizer.h"
#include "runtime/tokenizer/pre_tokenizer.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/unicode.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

namespace llmctl::runtime::tokenizer {
namespace {

Json read_json(const std::filesystem::path& path) {
  std::ifstream in(path);
  REQUIRE_MESSAGE(in.good(), path.string());
  return Json::parse(in);
}

Json golden_json(const std::string& name) { return read_json(test::golden("tokenizers/" + name)); }

std::vector<std::string> strings(const Json& json) { return json.get<std::vector<std::string>>(); }
std::vector<int32_t> ids_of(const Json& json) { return json.get<std::vector<int32_t>>(); }

/// Every second text, as make_goldens.py's few_texts.
std::vector<std::string> few_texts() {
  std::vector<std::string> out;
  const std::vector<std::string> all = strings(golden_json("texts.json"));
  for (size_t i = 0; i < all.size() && out.size() < 60; i += 2) out.push_back(all[i]);
  return out;
}

/// Collects what comes out of a decoder chain.
class Collector : public DecodeStage {
 public:
  explicit Collector(std::string& out) : out_(out) {}
  void text(std::string_view part) override { out_ += part; }
  void end_token() override {}
  void finish() override {}

 private:
  std::string& out_;
};

/// One-shot text, after checking that streaming gives the same in whole characters.
std::string decode_both_ways(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  const std::string text = tokenizer.decode(ids, true);
  StreamDecoder stream(tokenizer);
  std::string joined;
  for (const int32_t id : ids) {
    const std::string part = stream.push(id);
    CHECK(is_valid_utf8(part));
    joined += part;
  }
  joined += stream.finish();
  CHECK(joined == text);
  return text;
}

/// `directory` opened as open_tokenizer sees it, with `file` under the name it looks for.
std::unique_ptr<Tokenizer> open_as(const std::filesystem::path& file, const std::string& name) {
  const test::TempDir directory;
  std::filesystem::create_symlink(std::filesystem::absolute(file), directory / name);
  return open_tokenizer(directory.path());
}

void check_sentencepiece(const Tokenizer& tokenizer, const Json& golden, const Json& texts) {
  const std::vector<std::string> inputs = strings(texts);
  REQUIRE(golden.at("cases").size() == inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    CAPTURE(inputs[i]);
    const Json& expected = golden.at("cases").at(i);
    CHECK(tokenizer.encode(inputs[i], false) == ids_of(expected.at("plain_ids")));
    CHECK(decode_both_ways(tokenizer, ids_of(expected.at("plain_ids"))) == expected.at("text"));
  }
  for (const Json& soup : golden.at("soups")) {
    CAPTURE(soup.dump());
    CHECK(decode_both_ways(tokenizer, ids_of(soup.at("ids"))) == soup.at("text"));
  }
}

}  // namespace

TEST_CASE("tokenizer: pre-tokenizers cut texts as the tokenizers library does") {
  const std::vector<std::string> texts = few_texts();
  for (const Json& item : golden_json("pre_tokenizers.json")) {
    CAPTURE(item.at("config").dump());
    const auto pre_tokenizer = read_pre_tokenizer(Component(item.at("config"), "config"));
    REQUIRE(item.at("pieces").size() == texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      CAPTURE(texts[i]);
      PieceList list{texts[i], {}};
      if (!texts[i].empty()) list.pieces = {{0, texts[i].size(), true}};
      pre_tokenizer->apply(list);
      std::vector<std::string> pieces;
      for (const Piece& piece : list.pieces) {
        pieces.push_back(list.text.substr(piece.begin, piece.end - piece.begin));
      }
      CHECK(pieces == strings(item.at("pieces").at(i)));
    }
  }
}

TEST_CASE("tokenizer: normalizers rewrite texts as the tokenizers library does") {
  const std::vector<std::string> texts = few_texts();
  for (const Json& item : golden_json("normalizers.json")) {
    CAPTURE(item.at("config").dump());
    const auto normalizer = read_normalizer(Component(item.at("config"), "config"));
    REQUIRE(item.at("texts").size() == texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      CAPTURE(texts[i]);
      Fragment fragment{texts[i], true};
      normalizer->apply(fragment);
      CHECK(fragment.text == item.at("texts").at(i).get<std::string>());
    }
  }
}

TEST_CASE("tokenizer: decoders join tokens as the tokenizers library does") {
  for (const Json& item : golden_json("decoders.json")) {
    CAPTURE(item.at("config").dump());
    const auto decoder = read_decoder(Component(item.at("config"), "config"));
    REQUIRE(!item.at("cases").empty());
    for (const Json& expected : item.at("cases")) {
      CAPTURE(expected.dump());
      std::string text;
      const auto chain = decoder->start(std::make_unique<Collector>(text));
      for (const std::string& token : strings(expected.at("tokens"))) {
        chain->text(token);
        chain->end_token();
      }
      chain->finish();
      CHECK(text == expected.at("text").get<std::string>());
    }
  }
}

TEST_CASE(
    "tokenizer: small tokenizer.json files give the ids and texts of the tokenizers library") {
  const std::vector<std::string> texts = strings(golden_json("texts.json"));
  for (const std::string name :
       {"byte_level", "added_tokens", "bloom", "ignore_merges", "byte_fallback", "fuse_unk",
        "plain_unk", "no_decoder", "unigram", "unigram_bytes"}) {
    CAPTURE(name);
    const auto tokenizer = open_tokenizer(test::golden("tokenizers/" + name));
    REQUIRE(tokenizer != nullptr);
    const Json golden = golden_json(name + "/golden.json");
    REQUIRE(golden.at("cases").size() == texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      CAPTURE(texts[i]);
      const Json& expected = golden.at("cases").at(i);
      const std::vector<int32_t> ids = ids_of(expected.at("ids"));
      CHECK(tokenizer->encode(texts[i], true) == ids);
      CHECK(tokenizer->encode(texts[i], false) == ids_of(expected.at("plain_ids")));
      CHECK(decode_both_ways(*tokenizer, ids) == expected.at("text").get<std::string>());
      CHECK(tokenizer->decode(ids, false) == expected.at("full_text").get<std::string>());
    }
    for (const Json& soup : golden.at("soups")) {
      CAPTURE(soup.dump());
      CHECK(decode_both_ways(*tokenizer, ids_of(soup.at("ids"))) == soup.at("text"));
    }
  }
}

TEST_CASE("tokenizer: OPT's vocab.json and merges.txt put </s> in front as transformers does") {
  const std::vector<std::string> texts = strings(golden_json("texts.json"));
  const auto tokenizer = open_tokenizer(test::golden("tokenizers/opt"));
  REQUIRE(tokenizer != nullptr);
  const Json golden = golden_json("opt/golden.json");
  REQUIRE(golden.size() == texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    CAPTURE(texts[i]);
    CHECK(tokenizer->encode(texts[i], true) == ids_of(golden.at(i).at("ids")));
    CHECK(tokenizer->encode(texts[i], false) == ids_of(golden.at(i).at("plain_ids")));
  }
}

TEST_CASE("tokenizer: small SentencePiece models give the ids and texts of sentencepiece") {
  for (const std::string name : {"spm_bpe", "spm_unigram"}) {
    CAPTURE(name);
    const auto tokenizer = open_tokenizer(test::golden("tokenizers/" + name));
    REQUIRE(tokenizer != nullptr);
    const Json golden = golden_json(name + "/golden.json");
    check_sentencepiece(*tokenizer, golden, golden_json("texts.json"));
    const std::vector<int32_t> bos = {golden.at("bos").get<int32_t>()};
    CHECK(tokenizer->encode("", true) == bos);
  }
}

TEST_CASE(
    "tokenizer: published tokenizer.json and tiktoken files give the ids of the tokenizers "
    "library") {
  const std::vector<std::string> texts = strings(golden_json("real/texts.json"));
  for (const auto& [name, file] : {std::pair<std::string, std::string>{"gpt2", "tokenizer.json"},
                                   {"llama3", "tokenizer.json"},
                                   {"qwen2", "tokenizer.json"},
                                   {"gptneox", "20B_tokenizer.json"},
                                   {"llama2", "tokenizer.json"},
                                   {"llama3", "tokenizer.model"},
                                   {"qwen", "qwen.tiktoken"}}) {
    CAPTURE(name);
    CAPTURE(file);
    const auto path = test::test_data("tokenizers/" + name + "/" + file);
    if (!path) continue;
    const auto tokenizer = open_as(*path, name == "gptneox" ? "tokenizer.json" : file);
    REQUIRE(tokenizer != nullptr);
    // Qwen2 kept Qwen's ranks, and the texts hold none of the tokens it has added.
    const Json golden = golden_json("real/" + (name == "qwen" ? "qwen2" : name) + ".json");
    REQUIRE(golden.size() == texts.size());
    // This tokenizer.json of Llama 3 has no BOS in its frame; Llama 3's own code puts one.
    const bool framed = file != "tokenizer.model";
    for (size_t i = 0; i < texts.size(); ++i) {
      CAPTURE(texts[i]);
      const std::vector<int32_t> ids = ids_of(golden.at(i).at("ids"));
      CHECK(tokenizer->encode(texts[i], framed) == ids);
      CHECK(decode_both_ways(*tokenizer, ids) == golden.at(i).at("text").get<std::string>());
    }
  }
}

TEST_CASE("tokenizer: published SentencePiece models give the ids of sentencepiece") {
  for (const auto& [name, folder] :
       {std::pair<std::string, std::string>{"llama2", "tokenizers/llama2"},
        {"baichuan2", "tokenizers/baichuan2"},
        {"chatglm2", "tokenizers/chatglm2"},
        {"yuan2", "tokenizers/yuan2"},
        {"stories260K", "models/llama-stories260K"}}) {
    CAPTURE(name);
    const auto path = test::test_data(folder + "/tokenizer.model");
    if (!path) continue;
    const auto tokenizer = open_as(*path, "tokenizer.model");
    REQUIRE(tokenizer != nullptr);
    check_sentencepiece(*tokenizer, golden_json("real/" + name + "_model.json"),
                        golden_json("real/texts.json"));
  }
}

TEST_CASE("tokenizer: ChatGLM-6B spells white space as its own code does") {
  const auto path = test::test_data("tokenizers/chatglm/ice_text.model");
  if (!path) return;
  const auto tokenizer = open_tokenizer(path->parent_path());
  REQUIRE(tokenizer != nullptr);
  const Json golden = golden_json("real/chatglm_model.json");
  for (const Json& c : golden) {
    CAPTURE(c.at("input").get<std::string>());
    const std::vector<int32_t> ids = ids_of(c.at("ids"));
    CHECK(tokenizer->encode(c.at("input").get<std::string>(), false) == ids);
    CHECK(decode_both_ways(*tokenizer, ids) == c.at("text").get<std::string>());
  }
  CHECK(tokenizer->encode("", true) == std::vector<int32_t>{130001, 130004});
}

TEST_CASE("tokenizer: Yuan 2.0 finds its special tokens in a text and frames it with nothing") {
  const auto path = test::test_data("tokenizers/yuan2/tokenizer.model");
  if (!path) return;
  // The published folder's own tokenizer_config.json asks for BOS and EOS; Yuan's code does not.
  const test::TempDir directory;
  for (const char* name : {"tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"}) {
    std::filesystem::create_symlink(std::filesystem::absolute(path->parent_path() / name),
                                    directory / name);
  }
  std::ofstream(directory / "config.json") << R"({"model_type": "yuan"})";
  const auto tokenizer = open_tokenizer(directory.path());
  REQUIRE(tokenizer != nullptr);
  const Json golden = golden_json("real/yuan2_tokens.json");
  for (const auto& [token, id] : golden.at("tokens").items()) {
    CAPTURE(token);
    CHECK(tokenizer->find_token(token) == id.get<int32_t>());
    CHECK(tokenizer->find_spelling(id.get<int32_t>()) == token);
    CHECK(tokenizer->is_special(id.get<int32_t>()));
  }
  CHECK(golden.at("tokens").at("<eod>") == 77185);
  CHECK(golden.at("tokens").at("<FIM_MIDDLE>") == 134957);
  CHECK(tokenizer->vocab_size() == 134958);
  for (const Json& c : golden.at("cases")) {
    CAPTURE(c.at("input").get<std::string>());
    const std::vector<int32_t> ids = ids_of(c.at("ids"));
    CHECK(tokenizer->encode(c.at("input").get<std::string>(), true) == ids);
    CHECK(tokenizer->encode(c.at("input").get<std::string>(), false) == ids);
    CHECK(tokenizer->decode(ids, false) == c.at("text").get<std::string>());
    CHECK(tokenizer->decode(ids, true) == c.at("plain").get<std::string>());
  }
}

TEST_CASE("tokenizer: Yuan's tokens that are no pieces come behind the pieces") {
  const test::TempDir directory;
  const auto model = test::golden("tokenizers/spm_unigram/tokenizer.model");
  std::filesystem::create_symlink(std::filesystem::absolute(model), directory / "tokenizer.model");
  const auto plain = open_tokenizer(directory.path());
  std::ofstream(directory / "config.json") << R"({"model_type": "yuan"})";
  const auto yuan = open_tokenizer(directory.path());
  REQUIRE(plain != nullptr);
  REQUIRE(yuan != nullptr);
  const auto pieces = static_cast<int32_t>(plain->vocab_size());
  CHECK(yuan->find_token("<eod>") == pieces);
  CHECK(yuan->find_token("<sep>") == plain->find_token("<sep>"));  // a piece of this model
  CHECK(yuan->find_token("<pad>") == pieces + 1);
  std::vector<int32_t> want = plain->encode("one two", false);
  want.push_back(pieces);
  const std::vector<int32_t> rest = plain->encode("three", false);
  want.insert(want.end(), rest.begin(), rest.end());
  CHECK(yuan->encode("one two<eod>three", true) == want);
}

TEST_CASE("tokenizer: the vectors of llama.cpp hold") {
  for (const auto& [vector, file] :
       {std::pair<std::string, std::string>{"gpt-2", "gpt2/tokenizer.json"},
        {"llama-bpe", "llama3/tokenizer.json"},
        {"qwen2", "qwen2/tokenizer.json"},
        {"llama-bpe", "llama3/tokenizer.model"},
        {"qwen2", "qwen/qwen.tiktoken"},
        {"llama-spm", "llama2/tokenizer.model"}}) {
    CAPTURE(vector);
    const auto path = test::test_data("tokenizers/" + file);
    const auto base = test::test_data("tokenizers/vectors/ggml-vocab-" + vector + ".gguf.inp");
    if (!path || !base) continue;
    const auto tokenizer = open_as(*path, path->filename().string());
    std::stringstream input;
    input << std::ifstream(*base).rdbuf();
    std::filesystem::path out = *base;
    std::ifstream expected(out.replace_extension(".out"));
    const std::string separator = "\n__ggml_vocab_test__\n";
    std::string texts = input.str();
    std::string line;
    for (size_t begin = 0; begin <= texts.size() && std::getline(expected, line);) {
      const size_t end = std::min(texts.find(separator, begin), texts.size());
      const std::string text = texts.substr(begin, end - begin);
      begin = end + separator.size();
      std::istringstream numbers(line);
      std::vector<int32_t> ids;
      for (int32_t id = 0; numbers >> id;) ids.push_back(id);
      CAPTURE(text);
      CHECK(tokenizer->encode(text, false) == ids);
    }
  }
}

TEST_CASE("tokenizer: the sample model's prompts have the ids its goldens were made with") {
  const auto directory = test::test_data("models/llama-stories260K");
  if (!directory) return;
  const auto tokenizer = open_tokenizer(*directory);
  REQUIRE(tokenizer != nullptr);
  for (const Json& entry : read_json(*directory / "golden.json")) {
    CAPTURE(entry.at("prompt").dump());
    CHECK(tokenizer->encode(entry.at("prompt").get<std::string>(), true) ==
          ids_of(entry.at("input_ids")));
  }
}

}  // namespace llmctl::runtime::tokenizer
