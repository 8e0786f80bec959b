// Not a test of its own: the door through which tests/interop/tokenizers_test.py compares whole
// corpora with the Python libraries.
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/tokenizer/tokenizer.h"

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
  for (const auto& text : nlohmann::json::parse(in)) {
    const std::vector<int32_t> ids = tokenizer->encode(text.get<std::string>(), true);
    out.push_back({{"ids", ids}, {"text", tokenizer->decode(ids, true)}});
  }
  std::ofstream(output) << out;
}
