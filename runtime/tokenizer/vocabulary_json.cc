#include "runtime/tokenizer/vocabulary_json.h"

#include <limits>

#include "formats/core/error.h"

namespace llmctl::runtime::tokenizer {

namespace {

// The ordered object behind Json looks keys up one by one, so a hostile file with very many keys
// outside the vocabulary would cost quadratic time.
constexpr size_t kMaxKeys = 8192;
constexpr size_t kMaxDepth = 64;

/// The events of one parse: big tables go to their vectors, all else into a DOM.
class Handler : public nlohmann::json_sax<Json> {
 public:
  Handler(VocabularyJson& out, const std::string& where, bool root_is_vocab)
      : out_(out), where_(where), root_is_vocab_(root_is_vocab) {}

  bool null() override { return value(Json(nullptr)); }
  bool boolean(bool v) override { return value(Json(v)); }
  bool number_integer(number_integer_t v) override {
    if (table_ == Table::kTokens) return token(v);
    if (table_ == Table::kScores) return score(static_cast<double>(v));
    return value(Json(v));
  }
  bool number_unsigned(number_unsigned_t v) override {
    if (table_ == Table::kTokens) {
      return token(v > INT64_MAX ? std::numeric_limits<int64_t>::max() : static_cast<int64_t>(v));
    }
    if (table_ == Table::kScores) return score(static_cast<double>(v));
    return value(Json(v));
  }
  bool number_float(number_float_t v, const string_t&) override {
    if (table_ == Table::kScores) return score(v);
    return value(Json(v));
  }
  bool string(string_t& v) override {
    if (table_ == Table::kMerges && table_depth_ == 1) return merge(v);
    if (table_ == Table::kMerges && parts_.size() < 2) {
      parts_.push_back(std::move(v));
      return true;
    }
    if (table_ == Table::kScores && table_depth_ == 2 && parts_.empty()) {
      parts_.push_back(std::move(v));
      return true;
    }
    return value(Json(std::move(v)));
  }
  bool binary(binary_t&) override { refuse("binary data"); }

  bool start_object(size_t) override {
    if (table_ != Table::kNone) refuse_shape();
    if (opens_vocab()) return open_table(Table::kTokens);
    open(Json::object());
    return true;
  }
  bool key(string_t& v) override {
    if (table_ != Table::kNone) {
      key_ = std::move(v);
      return true;
    }
    Json& object = *open_.back();
    if (object.size() >= kMaxKeys) refuse("more than 8192 keys in one object");
    if (object.contains(v)) refuse("duplicate JSON key '" + printable(v) + "'");
    keys_.back() = std::move(v);
    return true;
  }
  bool end_object() override { return close(); }
  bool start_array(size_t) override {
    if (table_ == Table::kTokens || (table_ != Table::kNone && table_depth_ > 1)) refuse_shape();
    if (table_ != Table::kNone) {
      ++table_depth_;
      parts_.clear();
      return true;
    }
    if (opens_vocab() && !root_is_vocab_) return open_table(Table::kScores);
    if (at("merges")) return open_table(Table::kMerges);
    open(Json::array());
    return true;
  }
  bool end_array() override { return close(); }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& e) override {
    refuse(std::string("not valid JSON (") + printable(e.what()) + ")");
  }

 private:
  enum class Table { kNone, kTokens, kScores, kMerges };

  [[noreturn]] void refuse(const std::string& what) const { throw_invalid(where_, what); }
  [[noreturn]] void refuse_shape() const {
    switch (table_) {
      case Table::kMerges:
        refuse("a merge that is neither \"a b\" nor [\"a\", \"b\"]");
      case Table::kScores:
        refuse("a vocabulary entry that is not [token, score]");
      default:
        refuse("the vocabulary entry '" + printable(key_, 60) + "' is not an integer id");
    }
  }

  /// Is the value to come model.<key>?
  bool at(std::string_view key) const {
    return !root_is_vocab_ && keys_.size() == 2 && keys_[0] == "model" && keys_[1] == key;
  }
  bool opens_vocab() const { return root_is_vocab_ || at("vocab"); }

  bool open_table(Table table) {
    // The null keeps the key in its object, so that a second one is seen as a duplicate.
    place(Json(nullptr));
    table_ = table;
    table_depth_ = 1;
    return true;
  }
  bool token(int64_t id) {
    out_.tokens.emplace_back(std::move(key_), id);
    return true;
  }
  bool score(double v) {
    if (table_depth_ != 2 || parts_.size() != 1) refuse_shape();
    out_.scores.emplace_back(parts_.front(), v);
    parts_.push_back({});
    return true;
  }
  bool merge(const std::string& line) {
    const size_t space = line.find(' ');
    if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) {
      refuse("merge '" + printable(line, 60) + "' is not two tokens with one space between");
    }
    out_.merges.emplace_back(line.substr(0, space), line.substr(space + 1));
    return true;
  }

  bool value(Json v) {
    if (table_ != Table::kNone) refuse_shape();
    place(std::move(v));
    return true;
  }
  /// Puts `v` where the parse stands and returns it in place.
  Json& place(Json v) {
    if (open_.empty()) return out_.rest = std::move(v);
    Json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(v));
      return parent.back();
    }
    return parent[keys_.back()] = std::move(v);
  }
  // A pointer to an open container stays good: its parent does not grow while it is open.
  void open(Json container) {
    if (open_.size() == kMaxDepth) refuse("JSON nested deeper than 64 levels");
    open_.push_back(&place(std::move(container)));
    keys_.emplace_back();
  }
  bool close() {
    if (table_ == Table::kNone) {
      open_.pop_back();
      keys_.pop_back();
      return true;
    }
    if (table_depth_ == 2) {
      if (parts_.size() != 2) refuse_shape();
      if (table_ == Table::kMerges) {
        out_.merges.emplace_back(std::move(parts_[0]), std::move(parts_[1]));
      }
    }
    if (--table_depth_ == 0) table_ = Table::kNone;
    return true;
  }

  VocabularyJson& out_;
  const std::string& where_;
  bool root_is_vocab_;
  Table table_ = Table::kNone;
  int table_depth_ = 0;
  std::string key_;                 ///< of the vocabulary entry in progress
  std::vector<std::string> parts_;  ///< of the merge or scored token in progress
  std::vector<Json*> open_;
  std::vector<std::string> keys_;  ///< the key in progress in each of `open_`
};

VocabularyJson parse(std::string_view text, const std::string& where, bool root_is_vocab) {
  VocabularyJson out;
  Handler handler(out, where, root_is_vocab);
  Json::sax_parse(text.begin(), text.end(), &handler);
  return out;
}

}  // namespace

VocabularyJson parse_tokenizer_json(std::string_view text, const std::string& where) {
  VocabularyJson out = parse(text, where, false);
  if (!out.rest.is_object()) throw_invalid(where, "a JSON object expected");
  return out;
}

std::vector<std::pair<std::string, int64_t>> parse_vocab_json(std::string_view text,
                                                              const std::string& where) {
  VocabularyJson out = parse(text, where, true);
  if (out.tokens.empty()) throw_invalid(where, "no token -> id object in it");
  return std::move(out.tokens);
}

}  // namespace llmctl::runtime::tokenizer
