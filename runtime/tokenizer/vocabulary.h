// Token spellings and their ids.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llmctl::runtime {

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

}  // namespace llmctl::runtime
