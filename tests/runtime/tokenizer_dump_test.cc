// Not a test of its own: the door through which tests/interop/tokenizers_test.py compares whole
// corpora with the Python libraries.
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/unicode.h"

TEST_CASE("tokenizer: dumps ids for the interop script" * doctest::skip()) {
  const char* directory = std::getenv("LLMCTL_TOKENIZER_DIRECTORY");
  const char* input = std::getenv("LLMCTL_TOKENIZER_INPUT");
  const char* output = std::getenv("LLMCTL_TOKENIZER_OUTPUT");
  REQUIRE(directory != nullptr);
  REQUIRE(input != nullptr);
  REQUIRE(output != nullptr);

  const auto tokenizer = llmctl::runtime::open_tokenizer(directory);
  REQUIRE(tokenizer != nullptr);
  std::ifstream in(input);
  nlohmann::json out = nlohmann::json::array();
  // A text is encoded and decoded; a list of ids is decoded.
  for (const auto& item : nlohmann::json::parse(in)) {
    const auto ids = item.is_string() ? tokenizer->encode(item.get<std::string>(), true)
                                      : item.get<std::vector<int32_t>>();
    const std::string text = tokenizer->decode(ids, true);
    llmctl::runtime::StreamDecoder stream(*tokenizer);
    std::string joined;
    for (const int32_t id : ids) {
      const std::string part = stream.push(id);
      REQUIRE(llmctl::runtime::tokenizer::is_valid_utf8(part));
      joined += part;
    }
    REQUIRE(joined + stream.finish() == text);
    out.push_back({{"ids", ids}, {"text", text}});
  }
  std::ofstream(output) << out;
}
