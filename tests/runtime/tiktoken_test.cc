// Small tiktoken files: merging by rank, the tokens of each family, and what is refused.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "formats/core/error.h"
#include "runtime/tokenizer/base64.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/support/temp_dir.h"

namespace llmctl::runtime::tokenizer {
namespace {

void write_file(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string encode_base64(const std::string& bytes) {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t bits = 0;
    const size_t count = std::min<size_t>(3, bytes.size() - i);
    for (size_t j = 0; j < 3; ++j) {
      bits = bits << 8 | (j < count ? static_cast<uint8_t>(bytes[i + j]) : 0u);
    }
    for (size_t j = 0; j < 4; ++j) {
      out += j <= count ? kDigits[bits >> (18 - 6 * j) & 63] : '=';
    }
  }
  return out;
}

/// The 256 bytes in order, then `more`.
std::string ranks(const std::vector<std::string>& more) {
  std::string text;
  int rank = 0;
  for (int byte = 0; byte < 256; ++byte) {
    text += encode_base64(std::string(1, static_cast<char>(byte))) + " " + std::to_string(rank++) +
            "\n";
  }
  for (const std::string& token : more) {
    text += encode_base64(token) + " " + std::to_string(rank++) + "\n";
  }
  return text;
}

constexpr const char* kQwenConfig = R"({"tokenizer_class": "QWenTokenizer"})";

}  // namespace

TEST_CASE("base64: reads what RFC 4648 spells and refuses the rest") {
  CHECK(decode_base64("") == "");
  CHECK(decode_base64("Zg==") == "f");
  CHECK(decode_base64("Zm8=") == "fo");
  CHECK(decode_base64("Zm9vYmFy") == "foobar");
  CHECK(decode_base64("Zg") == "f");
  CHECK(decode_base64("/+8=") == "\xFF\xEF");
  CHECK(!decode_base64("Zg=a").has_value());
  CHECK(!decode_base64("=Zg=").has_value());
  CHECK(!decode_base64("Z g=").has_value());
}

TEST_CASE("tiktoken: merges the neighbours whose concatenation has the lowest rank") {
  const test::TempDir directory;
  // "abc" is made of (a)(bc) only where (bc) has merged first; "ab" has the lower rank, so "abc"
  // comes of (ab)(c), a cut that no list of merges made from one cut per token need hold.
  write_file(directory / "qwen.tiktoken", ranks({"ab", "bc", "abc", "abcd", "xyz"}));
  write_file(directory / "tokenizer_config.json", kQwenConfig);
  const auto tokenizer = open_tokenizer(directory.path());
  REQUIRE(tokenizer != nullptr);
  CHECK(tokenizer->encode("abc", true) == std::vector<int32_t>{258});
  CHECK(tokenizer->encode("abcc", true) == std::vector<int32_t>{258, 'c'});
  CHECK(tokenizer->encode("bcc", true) == std::vector<int32_t>{257, 'c'});
  // A whole piece that is a token needs no merges; inside a longer piece it does.
  CHECK(tokenizer->encode("xyz", true) == std::vector<int32_t>{260});
  CHECK(tokenizer->encode("xyzx", true) == std::vector<int32_t>{'x', 'y', 'z', 'x'});
  CHECK(tokenizer->decode(std::vector<int32_t>{258, 0xE4, 0xB8, 0xAD, 0xE4}, true) ==
        "abc\xE4\xB8\xAD\xEF\xBF\xBD");
}

TEST_CASE("tiktoken: Qwen's special tokens are found in the normalised text") {
  const test::TempDir directory;
  write_file(directory / "qwen.tiktoken", ranks({}));
  write_file(directory / "tokenizer_config.json", kQwenConfig);
  const auto tokenizer = open_tokenizer(directory.path());
  REQUIRE(tokenizer != nullptr);
  CHECK(tokenizer->find_token("<|im_start|>") == 151644);
  CHECK(tokenizer->find_token("<|extra_204|>") == 151850);
  CHECK(tokenizer->vocab_size() == 151851);
  CHECK(tokenizer->encode("a<|im_end|>b", true) == std::vector<int32_t>{'a', 151645, 'b'});
  // U+0338 joins the '>' under NFC, and the token is gone.
  CHECK(tokenizer->encode("<|im_end|>\xCC\xB8", true).size() > 5);
  CHECK(tokenizer->decode(std::vector<int32_t>{'a', 151645}, true) == "a");
  CHECK(tokenizer->decode(std::vector<int32_t>{'a', 151645}, false) == "a<|im_end|>");
}

TEST_CASE("tiktoken: files beside the ranks name special tokens that the family has reserved") {
  const test::TempDir directory;
  write_file(directory / "tokenizer.model", ranks({}));
  write_file(directory / "tokenizer_config.json", R"({"tokenizer_class": "ChatGLM4Tokenizer",
    "added_tokens_decoder": {"151329": {"content": "<|other|>", "special": true}}})");
  const auto tokenizer = open_tokenizer(directory.path());
  REQUIRE(tokenizer != nullptr);
  CHECK(tokenizer->find_token("<|other|>") == 151329);
  CHECK(!tokenizer->find_token("<|endoftext|>").has_value());
  CHECK(tokenizer->encode("a", true) == std::vector<int32_t>{151331, 151333, 'a'});
  CHECK(tokenizer->encode("a", false) == std::vector<int32_t>{'a'});
}

TEST_CASE("tiktoken: refuses by name what does not say how text is cut") {
  const test::TempDir directory;
  const auto refusal = [&] {
    try {
      open_tokenizer(directory.path());
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("opened");
  };
  const auto says = [&](const char* part) {
    const std::string text = refusal();
    CAPTURE(text);
    return text.find(part) != std::string::npos;
  };
  write_file(directory / "a.tiktoken", ranks({}));
  CHECK(says("a.tiktoken: a tiktoken vocabulary of 256 ranks"));
  CHECK(says("put the model's tokenizer.json beside it"));
  write_file(directory / "tokenizer_config.json", R"({"tokenizer_class": "KimiTokenizer"})");
  CHECK(says("tokenizer class 'KimiTokenizer'"));
  write_file(directory / "tokenizer_config.json", kQwenConfig);
  CHECK(refusal() == "opened");
  write_file(directory / "b.tiktoken", ranks({}));
  CHECK(says("several tiktoken vocabularies"));
  std::filesystem::remove(directory / "b.tiktoken");
  write_file(directory / "a.tiktoken", "IQ== 0\nIg== 1\n");
  CHECK(says("the byte 0 has no rank"));
  write_file(directory / "a.tiktoken", ranks({}) + "YWI= x\n");
  CHECK(says("line 257: 'YWI= x' is not a token in base64"));
  write_file(directory / "a.tiktoken", ranks({"ab", "ab"}));
  CHECK(says("comes twice"));
  write_file(directory / "a.tiktoken", ranks({}) + "YWI= 7\n");
  CHECK(says("id 7 is used by two tokens"));
  write_file(directory / "a.tiktoken", ranks({}) + "YWI= 99999999999\n");
  CHECK(says("line 257"));
}

}  // namespace llmctl::runtime::tokenizer
