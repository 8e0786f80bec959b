#include "runtime/tokenizer/vocabulary.h"

#include <algorithm>
#include <cstdio>

#include "formats/core/error.h"

namespace llmctl::runtime::tokenizer {

Vocabulary::Vocabulary(std::vector<std::pair<std::string, int64_t>> tokens,
                       const std::string& where)
    : tokens_(std::move(tokens)) {
  const int64_t count = static_cast<int64_t>(tokens_.size());
  const int64_t limit = 2 * count + (int64_t{1} << 20);
  int64_t size = 0;
  for (const auto& [spelling, id] : tokens_) {
    if (id < 0 || id >= limit) {
      throw_invalid(where, "token '" + printable(spelling, 60) + "' has id " + std::to_string(id) +
                               ", but there are only " + std::to_string(count) + " tokens");
    }
    size = std::max(size, id + 1);
  }
  by_id_.assign(static_cast<size_t>(size), -1);
  index_.reserve(tokens_.size());
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const auto& [spelling, id] = tokens_[i];
    int32_t& slot = by_id_[static_cast<size_t>(id)];
    if (slot >= 0) throw_invalid(where, "id " + std::to_string(id) + " is used by two tokens");
    slot = static_cast<int32_t>(i);
    if (!index_.emplace(spelling, static_cast<int32_t>(id)).second) {
      throw_invalid(where, "token '" + printable(spelling, 60) + "' comes twice");
    }
  }
}

const std::string* Vocabulary::find_spelling(int32_t id) const {
  if (id < 0 || id >= size()) return nullptr;
  const int32_t slot = by_id_[static_cast<size_t>(id)];
  return slot < 0 ? nullptr : &tokens_[static_cast<size_t>(slot)].first;
}

std::array<std::optional<int32_t>, 256> find_byte_tokens(const Vocabulary& vocabulary) {
  std::array<std::optional<int32_t>, 256> ids;
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::array<char, 8> spelling;
    std::snprintf(spelling.data(), spelling.size(), "<0x%02X>", byte);
    ids[byte] = vocabulary.find(spelling.data());
  }
  return ids;
}

}  // namespace llmctl::runtime::tokenizer
