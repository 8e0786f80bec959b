#include "runtime/tokenizer/tokenizer.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "formats/core/error.h"
#include "runtime/tokenizer/pattern.h"
#include "runtime/tokenizer/regex_syntax.h"
#include "runtime/tokenizer/unicode.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

namespace llmctl::runtime::tokenizer {
namespace {

void write_file(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string read_file(const std::filesystem::path& path) {
  std::stringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::unique_ptr<Tokenizer> open_text(const std::string& tokenizer_json) {
  const test::TempDir directory;
  write_file(directory / "tokenizer.json", tokenizer_json);
  return open_tokenizer(directory.path());
}

/// A character-level tokenizer.json with `extra` keys in it.
std::string with(const std::string& extra) {
  return R"({"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]})" +
         (extra.empty() ? "" : "," + extra) + "}";
}

/// The message of the Error that opening `tokenizer_json` throws.
std::string refusal(const std::string& tokenizer_json) {
  try {
    open_text(tokenizer_json);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kInvalidInput);
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string regex_refusal(const std::string& pattern) {
  try {
    pcre2_from_oniguruma(pattern, "here");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::unique_ptr<Tokenizer> golden_tokenizer(const std::string& name) {
  return open_tokenizer(test::golden("tokenizers/" + name));
}

std::vector<int32_t> concat(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace

TEST_CASE("tokenizer: a directory without tokenizer files opens as null") {
  const test::TempDir directory;
  CHECK(open_tokenizer(directory.path()) == nullptr);
  write_file(directory / "config.json", "{}");
  CHECK(open_tokenizer(directory.path()) == nullptr);
}

TEST_CASE("tokenizer: tokenizer.json goes before the other files") {
  const test::TempDir directory;
  write_file(directory / "tokenizer.json", with(""));
  write_file(directory / "tokenizer.model", "rubbish");
  write_file(directory / "vocab.json", "rubbish");
  CHECK(open_tokenizer(directory.path())->encode("ab", true) == std::vector<int32_t>{2});
}

TEST_CASE("tokenizer: the vocabulary answers by spelling and by id") {
  const auto tokenizer = open_text(
      with(R"("added_tokens":[{"id":7,"content":"<x>","special":true},{"id":9,"content":"<y>"}])"));
  CHECK(tokenizer->vocab_size() == 10);
  CHECK(tokenizer->find_token("ab") == 2);
  CHECK(tokenizer->find_token("<x>") == 7);
  CHECK(!tokenizer->find_token("abc"));
  CHECK(tokenizer->find_spelling(9) == "<y>");
  CHECK(!tokenizer->find_spelling(8));
  CHECK(!tokenizer->find_spelling(-1));
  CHECK(!tokenizer->find_spelling(1000000));
  CHECK(tokenizer->is_special(7));
  CHECK(!tokenizer->is_special(9));
  CHECK(tokenizer->decode(std::vector<int32_t>{7, 2, 500, -4, 9}, true) == "ab <y>");
  CHECK(tokenizer->decode(std::vector<int32_t>{7, 2, 9}, false) == "<x> ab <y>");
}

TEST_CASE("tokenizer: bytes that are not UTF-8 are read as one U+FFFD per maximal invalid run") {
  CHECK(to_valid_utf8("a\xE4\xBD") == "a\xEF\xBF\xBD");
  CHECK(to_valid_utf8("\xE4\xBD\x41") == "\xEF\xBF\xBD\x41");
  CHECK(to_valid_utf8("\xFF\xFE") == "\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(to_valid_utf8("\xED\xA0\x80") == "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(to_valid_utf8("\xC0\xAF") == "\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(to_valid_utf8("\xF4\x90\x80\x80") == "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(to_valid_utf8("\xF0\x9F\x98\x80") == "\xF0\x9F\x98\x80");
  for (const std::string name : {"byte_level", "byte_fallback", "spm_bpe", "added_tokens"}) {
    CAPTURE(name);
    const auto tokenizer = golden_tokenizer(name);
    CHECK(tokenizer->encode("caf\xC3 \xF0\x9F\x98", true) ==
          tokenizer->encode("caf\xEF\xBF\xBD \xEF\xBF\xBD", true));
  }
}

TEST_CASE("tokenizer: random bytes encode and decode without harm") {
  std::mt19937 random(11);
  for (const std::string name : {"byte_level", "byte_fallback", "spm_unigram", "ignore_merges"}) {
    CAPTURE(name);
    const auto tokenizer = golden_tokenizer(name);
    for (int round = 0; round < 50; ++round) {
      std::string bytes(random() % 60, '\0');
      for (char& c : bytes) c = static_cast<char>(random());
      const std::vector<int32_t> ids = tokenizer->encode(bytes, false);
      CHECK(is_valid_utf8(tokenizer->decode(ids, true)));
      if (name == "byte_level") CHECK(tokenizer->decode(ids, true) == to_valid_utf8(bytes));
    }
  }
}

TEST_CASE("tokenizer: a stream never prints half a character") {
  const auto tokenizer = golden_tokenizer("byte_level");
  const std::vector<int32_t> ids = tokenizer->encode("😁", false);
  REQUIRE(ids.size() == 4);
  StreamDecoder stream(*tokenizer);
  CHECK(stream.push(ids[0]) == "");
  CHECK(stream.push(ids[1]) == "");
  CHECK(stream.push(ids[2]) == "");
  CHECK(stream.push(ids[3]) == "😁");
  CHECK(stream.push(ids[0]) == "");
  CHECK(stream.push(ids[1]) == "");
  CHECK(stream.finish() == "\xEF\xBF\xBD");
}

TEST_CASE("tokenizer: a genuine U+FFFD does not stall a stream") {
  const auto tokenizer = golden_tokenizer("byte_level");
  StreamDecoder stream(*tokenizer);
  std::string text;
  for (const int32_t id : tokenizer->encode("\xEF\xBF\xBD", false)) text += stream.push(id);
  CHECK(text == "\xEF\xBF\xBD");
}

TEST_CASE(
    "tokenizer: a run of byte tokens waits for its end because one bad byte spoils all of it") {
  const auto tokenizer = golden_tokenizer("byte_fallback");
  const auto byte = [&](const char* spelling) { return *tokenizer->find_token(spelling); };
  const auto letter = tokenizer->find_token("a");
  REQUIRE(letter);
  StreamDecoder good(*tokenizer);
  CHECK(good.push(byte("<0xC3>")) == "");
  CHECK(good.push(byte("<0xA9>")) == "");
  CHECK(good.push(*letter) == "éa");
  StreamDecoder bad(*tokenizer);
  CHECK(bad.push(byte("<0xC3>")) == "");
  CHECK(bad.push(byte("<0xA9>")) == "");
  CHECK(bad.push(byte("<0xFF>")) == "");
  CHECK(bad.finish() == "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST_CASE("tokenizer: a continuation keeps the space that a fresh text loses") {
  for (const std::string name : {"byte_fallback", "spm_bpe"}) {
    CAPTURE(name);
    const auto tokenizer = golden_tokenizer(name);
    const std::vector<int32_t> prompt = tokenizer->encode("The cat", true);
    const std::vector<int32_t> output = tokenizer->encode("sat", false);
    StreamDecoder fresh(*tokenizer);
    StreamDecoder continued(*tokenizer, prompt);
    std::string fresh_text, continued_text;
    for (const int32_t id : output) {
      fresh_text += fresh.push(id);
      continued_text += continued.push(id);
    }
    fresh_text += fresh.finish();
    continued_text += continued.finish();
    CHECK(fresh_text == "sat");
    CHECK(continued_text == " sat");
    CHECK(tokenizer->decode(concat(prompt, output), true) == "The cat sat");
  }
}

TEST_CASE("tokenizer: prompt text and streamed text joined are the one-shot text") {
  std::mt19937 random(5);
  for (const std::string name : {"byte_level", "byte_fallback", "spm_bpe", "spm_unigram",
                                 "fuse_unk", "no_decoder", "added_tokens"}) {
    const auto tokenizer = golden_tokenizer(name);
    for (int round = 0; round < 40; ++round) {
      CAPTURE(name);
      CAPTURE(round);
      std::vector<int32_t> ids(2 + random() % 20);
      for (int32_t& id : ids) {
        id = static_cast<int32_t>(random() % static_cast<uint32_t>(tokenizer->vocab_size()));
      }
      const size_t cut = random() % ids.size();
      const std::span<const int32_t> all(ids);
      const std::string whole = tokenizer->decode(ids, true);
      StreamDecoder stream(*tokenizer, all.first(cut));
      std::string tail;
      for (const int32_t id : all.subspan(cut)) tail += stream.push(id);
      tail += stream.finish();
      REQUIRE(tail.size() <= whole.size());
      CHECK(whole.ends_with(tail));
      // What stands before the tail is what the prompt alone prints for certain.
      CHECK(tokenizer->decode(all.first(cut), true)
                .starts_with(whole.substr(0, whole.size() - tail.size())));
    }
  }
}

TEST_CASE("tokenizer: components that are not known are refused by name and place") {
  CHECK(contains(refusal(with(R"("normalizer":{"type":"Nmt"})")), "'Nmt'"));
  CHECK(contains(refusal(with(R"("normalizer":{"type":"Sequence","normalizers":[{"type":"X"}]})")),
                 "normalizer.normalizers[0]: normalizer type 'X' is not supported"));
  CHECK(contains(refusal(with(R"("pre_tokenizer":{"type":"UnicodeScripts"})")), "UnicodeScripts"));
  CHECK(contains(refusal(with(R"("post_processor":{"type":"Y"})")), "post-processor type 'Y'"));
  CHECK(contains(refusal(with(R"("decoder":{"type":"CTC"})")), "decoder type 'CTC'"));
  CHECK(contains(refusal(R"({"model":{"type":"WordPiece","vocab":{"a":0}}})"), "'WordPiece'"));
  CHECK(contains(refusal(with(R"("decoder":{})")), "'type' must be a string"));
  CHECK(contains(refusal(R"({"model":{"type":"BPE","dropout":0.1,"vocab":{"a":0},"merges":[]}})"),
                 "dropout"));
}

TEST_CASE("tokenizer: broken tables are refused with what is wrong in them") {
  const auto model = [](const std::string& vocab, const std::string& merges) {
    return R"({"model":{"type":"BPE","vocab":)" + vocab + R"(,"merges":)" + merges + "}}";
  };
  CHECK(refusal(model(R"({"a":0})", "[]")).empty());
  CHECK(contains(refusal(model(R"({"a":0,"a":1})", "[]")), "'a' comes twice"));
  CHECK(contains(refusal(model(R"({"a":0,"b":0})", "[]")), "id 0 is used by two tokens"));
  CHECK(contains(refusal(model(R"({"a":-1})", "[]")), "id -1"));
  CHECK(contains(refusal(model(R"({"a":4000000000})", "[]")), "id 4000000000"));
  CHECK(contains(refusal(model(R"({"a":99999999999999999999})", "[]")), "'a'"));
  CHECK(contains(refusal(model(R"({"a":0.5})", "[]")), "'a' is not an integer id"));
  CHECK(contains(refusal(model(R"({"a":"b"})", "[]")), "'a' is not an integer id"));
  CHECK(contains(refusal(model(R"({"a":{}})", "[]")), "'a' is not an integer id"));
  CHECK(contains(refusal(model(R"({"a":0})", R"(["a"])")), "not two tokens"));
  CHECK(contains(refusal(model(R"({"a":0})", R"(["a a a"])")), "not two tokens"));
  CHECK(contains(refusal(model(R"({"a":0})", R"(["a a"])")), "'aa', which is not in the vocab"));
  CHECK(contains(refusal(model(R"({"a":0})", R"([["a","b"]])")), "'b', which is not in the vocab"));
  CHECK(contains(refusal(model(R"({"a":0})", R"([["a"]])")), "neither"));
  CHECK(contains(refusal(model(R"({"a":0})", R"([["a","b","c"]])")), "neither"));
  CHECK(contains(refusal(model(R"({"a":0})", R"([[["a"]]])")), "neither"));
  CHECK(contains(refusal(model(R"({"a":0})", R"([1])")), "neither"));
  CHECK(contains(refusal(model(R"({"a":0},"vocab":{"b":1})", "[]")), "duplicate JSON key 'vocab'"));
  CHECK(contains(refusal(model(R"([["a",0.0]])", "[]")), "must be an object"));
  CHECK(contains(refusal(with(R"("added_tokens":[{"id":1,"content":"x"}])")), "id 1"));
  CHECK(contains(refusal(with(R"("added_tokens":[{"id":8,"content":"x"},{"id":8,"content":"y"}])")),
                 "id 8"));
  CHECK(contains(refusal(with(R"("post_processor":{"type":"TemplateProcessing","single":[
      {"SpecialToken":{"id":"s"}},{"Sequence":{"id":"A"}}],"special_tokens":{"s":{"ids":[77]}}})")),
                 "id 77"));
  CHECK(contains(refusal(std::string(100, '[')), "deeper than 64"));
  CHECK(contains(refusal("[]"), "object"));
  CHECK(!refusal("").empty());
  CHECK(!refusal("{\"model\":\xFF}").empty());
}

TEST_CASE("tokenizer: a broken Unigram model is refused and an inexpressible text too") {
  const auto model = [](const std::string& vocab, const std::string& more) {
    return R"({"model":{"type":"Unigram","vocab":)" + vocab + more + "}}";
  };
  CHECK(contains(refusal(model("[]", "")), "empty"));
  CHECK(contains(refusal(model(R"({"a":0})", "")), "must be a list"));
  CHECK(contains(refusal(model(R"([["a"]])", "")), "not [token, score]"));
  CHECK(contains(refusal(model(R"([["a",0,1]])", "")), "not [token, score]"));
  CHECK(contains(refusal(model(R"([["a","b"]])", "")), "not [token, score]"));
  CHECK(contains(refusal(model(R"([[0,"a"]])", "")), "not [token, score]"));
  CHECK(contains(refusal(model(R"([["a",0],["a",1]])", "")), "comes twice"));
  CHECK(contains(refusal(model(R"([["a",0]])", R"(,"unk_id":1)")), "unk_id 1"));
  const auto tokenizer = open_text(model(R"([["a",-1],["aa",-1.5]])", ""));
  CHECK(tokenizer->encode("aaa", true) == std::vector<int32_t>{0, 1});
  CHECK_THROWS_WITH_AS(tokenizer->encode("ab", true), doctest::Contains("cannot express"), Error);
}

TEST_CASE("tokenizer: a damaged character map is refused or harmless") {
  const auto refused = [](const std::string& base64) {
    return refusal(
        with(R"("normalizer":{"type":"Precompiled","precompiled_charsmap":")" + base64 + "\"}"));
  };
  CHECK(contains(refused(""), "no trie"));
  CHECK(contains(refused("*"), "not base64"));
  CHECK(contains(refused("CAAAAA=="), "a trie of 8 bytes in 0"));
  CHECK(contains(refused("AwAAAAAA"), "a trie of 3 bytes in 2"));
  std::mt19937 random(4);
  static constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (int round = 0; round < 200; ++round) {
    // A trie of 1016 bytes of noise, then the replacements "abcdef": every search walks noise.
    std::string base64 = "+AMAAA";
    while (base64.size() < 1360) base64 += kDigits[random() % 64];
    base64 += "YWJjZGVm";
    const auto tokenizer = open_text(
        with(R"("normalizer":{"type":"Precompiled","precompiled_charsmap":")" + base64 + "\"}"));
    CHECK_NOTHROW(tokenizer->encode("ab \xC3\xA9 \xE6\x97\xA5 AZaz09", true));
  }
}

TEST_CASE("tokenizer: every prefix of a tokenizer.json is refused") {
  const std::string whole = read_file(test::golden("tokenizers/added_tokens/tokenizer.json"));
  const size_t end = whole.find_last_of('}');
  for (size_t size = 0; size <= end; size += size + 200 < end ? 131 : 1) {
    CAPTURE(size);
    CHECK(!refusal(whole.substr(0, size)).empty());
  }
}

TEST_CASE("unicode: a character before the trailing consonants of Hangul is no consonant") {
  const std::string syllable = "\xEA\xB0\x80", jamo = "\xE1\x84\x80\xE1\x85\xA1";
  const std::string before = "\xE1\x86\xA7", first = "\xE1\x86\xA8", accent = "\xCC\x81";
  CHECK(normalize_unicode(jamo + first, NormalForm::kNfc) == "\xEA\xB0\x81");
  for (const NormalForm form : {NormalForm::kNfc, NormalForm::kNfkc}) {
    CHECK(normalize_unicode(jamo + before, form) == syllable + before);
    CHECK(normalize_unicode(before + jamo + before + first + "e" + accent, form) ==
          before + syllable + before + first + "\xC3\xA9");
  }
  CHECK(normalize_unicode(syllable + before, NormalForm::kNfd) == jamo + before);
}

TEST_CASE("tokenizer: a cut or altered SentencePiece model is refused or harmless") {
  const std::string whole = read_file(test::golden("tokenizers/spm_bpe/tokenizer.model"));
  const test::TempDir directory;
  std::mt19937 random(2);
  const auto try_open = [&](const std::string& bytes) {
    write_file(directory / "tokenizer.model", bytes);
    try {
      const auto tokenizer = open_tokenizer(directory.path());
      REQUIRE(tokenizer != nullptr);
      CHECK(is_valid_utf8(tokenizer->decode(tokenizer->encode("Hello 日本", true), true)));
    } catch (const Error& error) {
      CHECK(!std::string(error.what()).empty());
    }
  };
  for (size_t size = 0; size < whole.size(); size += 61) try_open(whole.substr(0, size));
  for (int round = 0; round < 150; ++round) {
    std::string bytes = whole;
    bytes[random() % bytes.size()] ^= static_cast<char>(1u << (random() % 8));
    try_open(bytes);
  }
}

TEST_CASE("tokenizer: tokenizer_config.json decides about BOS and EOS of a SentencePiece model") {
  const test::TempDir directory;
  write_file(directory / "tokenizer.model",
             read_file(test::golden("tokenizers/spm_bpe/tokenizer.model")));
  const auto ids = [&](const std::string& config) {
    write_file(directory / "tokenizer_config.json", config);
    return open_tokenizer(directory.path())->encode("", true);
  };
  using Ids = std::vector<int32_t>;
  CHECK(ids("{}") == Ids{1});
  CHECK(ids(R"({"tokenizer_class":"LlamaTokenizer"})") == Ids{1});
  CHECK(ids(R"({"tokenizer_class":"LlamaTokenizerFast","add_bos_token":false})") == Ids{});
  CHECK(ids(R"({"add_bos_token":true,"add_eos_token":true})") == Ids{1, 2});
  CHECK(ids(R"({"add_eos_token":true,"eos_token":{"content":"<unk>"}})") == Ids{1, 0});
  CHECK(ids(R"({"tokenizer_class":"Strange","add_bos_token":true})") == Ids{1});
  CHECK(
      ids(R"({"bos_token":"<new>","added_tokens_decoder":{"500":{"content":"<new>","special":true}}})") ==
      Ids{500});
  CHECK(open_tokenizer(directory.path())->vocab_size() == 501);
  CHECK(open_tokenizer(directory.path())->decode(Ids{500}, true).empty());
  CHECK(open_tokenizer(directory.path())->decode(Ids{500}, false) == "<new>");
  CHECK(ids(R"({"tokenizer_class":"ChatGLMTokenizer"})") == Ids{501, 503});
  CHECK_THROWS_WITH_AS(ids(R"({"tokenizer_class":"Strange"})"),
                       doctest::Contains("tokenizer class 'Strange'"), Error);
  CHECK_THROWS_AS(ids(R"({"add_bos_token":"yes"})"), Error);
}

TEST_CASE("tokenizer: the LLaMA class's flags go before the post-processor of tokenizer.json") {
  const test::TempDir directory;
  write_file(directory / "tokenizer.json",
             read_file(test::golden("tokenizers/byte_fallback/tokenizer.json")));
  const auto ids = [&](const std::string& config) {
    write_file(directory / "tokenizer_config.json", config);
    return open_tokenizer(directory.path())->encode("", true);
  };
  using Ids = std::vector<int32_t>;
  CHECK(ids(R"({"tokenizer_class":"LlamaTokenizer"})") == Ids{1});
  CHECK(ids(R"({"tokenizer_class":"LlamaTokenizer","add_bos_token":false})") == Ids{});
  CHECK(ids(R"({"tokenizer_class":"LlamaTokenizerFast","add_eos_token":true})") == Ids{1, 2});
  CHECK(ids(R"({"tokenizer_class":"GPT2Tokenizer","add_bos_token":false})") == Ids{1});
}

TEST_CASE("tokenizer: vocab.json and merges.txt follow the model type where no class is named") {
  const std::filesystem::path opt = test::golden("tokenizers/opt");
  const test::TempDir directory;
  for (const char* name : {"vocab.json", "merges.txt"}) {
    std::filesystem::copy_file(opt / name, directory / name);
  }
  CHECK(open_tokenizer(directory.path())->encode("", true).empty());
  const int32_t end = *open_tokenizer(directory.path())->find_token("</s>");
  write_file(directory / "config.json",
             R"({"model_type":"opt","bos_token_id":)" + std::to_string(end) + "}");
  CHECK(open_tokenizer(directory.path())->encode("", true) == std::vector<int32_t>{end});
  write_file(directory / "config.json", R"({"model_type":"gpt2"})");
  CHECK(open_tokenizer(directory.path())->encode("", true).empty());
  write_file(directory / "config.json", R"({"model_type":"clip"})");
  CHECK_THROWS_WITH_AS(open_tokenizer(directory.path()), doctest::Contains("'clip'"), Error);
}

TEST_CASE("tokenizer: regular expressions that cannot be carried over are refused by construct") {
  CHECK(contains(regex_refusal("[^(\\s|[^.])]+"), "a negated class inside a class"));
  CHECK(contains(regex_refusal("[a&&b]"), "'&&' in a class"));
  CHECK(contains(regex_refusal("[[:alpha:]]"), "POSIX"));
  CHECK(contains(regex_refusal("(a)\\1"), "'\\1'"));
  CHECK(contains(regex_refusal("(?m:a)"), "group"));
  CHECK(contains(regex_refusal("(?<name>a)"), "group"));
  CHECK(contains(regex_refusal("a(?i)b"), "'(?i)'"));
  CHECK(contains(regex_refusal("\\p{Klingon}"), "Klingon"));
  CHECK(contains(regex_refusal("(a"), "unbalanced"));
  CHECK(contains(regex_refusal("a)"), "unbalanced"));
  CHECK(contains(regex_refusal("[a"), "unclosed"));
  CHECK(contains(regex_refusal("*a"), "nothing to repeat"));
  CHECK(contains(regex_refusal("a\\"), "trailing backslash"));
  CHECK(contains(regex_refusal("\\X"), "'\\X'"));
  CHECK(regex_refusal(" ?[^(\\s|[.,!?…。，、।۔،])]+").empty());
}

TEST_CASE("tokenizer: a long text without cuts is merged in good time") {
  const auto tokenizer = golden_tokenizer("byte_fallback");
  std::string text;
  for (int i = 0; i < 40000; ++i) text += "the license of the work ";
  const std::vector<int32_t> ids = tokenizer->encode(text, false);
  CHECK(ids.size() < text.size());
  CHECK(tokenizer->decode(ids, true) == text);
}

}  // namespace llmctl::runtime::tokenizer
