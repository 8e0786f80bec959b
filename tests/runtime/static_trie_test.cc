#include "runtime/tokenizer/static_trie.h"

#include <doctest/doctest.h>

#include <map>
#include <random>
#include <string>

namespace llmctl::runtime::tokenizer {

TEST_CASE("static trie: finds what a map finds") {
  std::mt19937 random(3);
  // Few bytes give deep trees, all 256 give wide ones.
  for (const unsigned alphabet : {2u, 26u, 256u}) {
    CAPTURE(alphabet);
    const auto draw = [&] {
      std::string key(1 + random() % 9, ' ');
      for (char& c : key) c = static_cast<char>(random() % alphabet);
      return key;
    };
    std::map<std::string, int32_t> keys;
    std::vector<std::pair<std::string_view, int32_t>> entries;
    while (keys.size() < (alphabet == 2 ? 500u : 5000u)) {
      const auto [key, is_new] = keys.emplace(draw(), static_cast<int32_t>(keys.size()));
      entries.emplace_back(key->first, is_new ? key->second : 1 << 20);  // the first value counts
    }
    const StaticTrie trie(std::move(entries));
    for (int round = 0; round < 20000; ++round) {
      const std::string text = draw();
      std::pair<size_t, int32_t> expected = {0, -1};
      for (size_t length = 1; length <= text.size(); ++length) {
        const auto found = keys.find(text.substr(0, length));
        if (found != keys.end()) expected = {length, found->second};
      }
      REQUIRE(trie.longest_prefix(text) == expected);
    }
    for (const auto& [key, value] : keys) REQUIRE(trie.longest_prefix(key).second == value);
  }
}

TEST_CASE("static trie: without keys nothing is found") {
  const StaticTrie trie;
  CHECK(trie.longest_prefix("a").first == 0);
  CHECK_FALSE(trie.may_start_with('a'));
}

}  // namespace llmctl::runtime::tokenizer
