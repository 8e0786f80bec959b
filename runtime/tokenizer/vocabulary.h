// Token spellings and their ids.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llmctl::runtime::tokenizer {

/// Immutable; safe to share between threads. Not copyable: the index points into the spellings.
class Vocabulary {
 public:
  /// Throws kInvalidInput, naming `where`, for a spelling or an id that comes twice, a negative id,
  /// and ids so sparse that a table of them would not be worth its memory.
  Vocabulary(std::vector<std::pair<std::string, int64_t>> tokens, const std::string& where);
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;

  std::optional<int32_t> find(std::string_view spelling) const {
    const auto found = index_.find(spelling);
    if (found == index_.end()) return std::nullopt;
    return found->second;
  }
  /// Null when no token has this id. Lives as long as the vocabulary.
  const std::string* find_spelling(int32_t id) const;
  /// The highest id + 1.
  int64_t size() const { return static_cast<int64_t>(by_id_.size()); }

 private:
  std::vector<std::pair<std::string, int64_t>> tokens_;
  std::vector<int32_t> by_id_;  ///< index into tokens_, -1 for an id without a token
  std::unordered_map<std::string_view, int32_t> index_;
};

/// The ids of the byte tokens <0x00> to <0xFF>, where the vocabulary has them.
std::array<std::optional<int32_t>, 256> find_byte_tokens(const Vocabulary& vocabulary);

}  // namespace llmctl::runtime::tokenizer
