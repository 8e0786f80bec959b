#include "runtime/tokenizer/sentencepiece_normalizer.h"

#include "formats/core/error.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

bool is_ascii(char c) { return static_cast<uint8_t>(c) < 0x80; }
bool is_inside_character(char c) { return (static_cast<uint8_t>(c) & 0xC0) == 0x80; }

}  // namespace

SentencePieceNormalizer::SentencePieceNormalizer(const SentencePieceProto& proto,
                                                 const StaticTrie& user_defined,
                                                 const std::string& where)
    : user_defined_(user_defined),
      add_dummy_prefix_(proto.add_dummy_prefix),
      remove_extra_whitespaces_(proto.remove_extra_whitespaces),
      space_(proto.escape_whitespaces ? kSpaceSymbol : " ") {
  if (!proto.charsmap.empty()) {
    const std::string wrong = map_.read(proto.charsmap);
    if (!wrong.empty()) throw_invalid(where, "precompiled_charsmap: " + wrong);
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    const char first = static_cast<char>(byte);
    bool plain = first != ' ' && !user_defined_.may_start_with(first);
    if (!map_.empty()) {
      plain = plain && is_ascii(first);
      for (unsigned second = 0; plain && second < 128; ++second) {
        const char pair[] = {first, static_cast<char>(second)};
        plain = !map_.find_shortest({pair, 2}) && !map_.is_prefix({pair, 2});
      }
    }
    plain_[byte] = plain;
  }
}

/// Does the character at `i` stand for itself?
bool SentencePieceNormalizer::is_plain(std::string_view text, size_t i) const {
  return plain_[static_cast<uint8_t>(text[i])] &&
         (map_.empty() || i + 1 == text.size() || is_ascii(text[i + 1]));
}

SentencePieceNormalizer::Front SentencePieceNormalizer::front(std::string_view text) const {
  if (const size_t length = user_defined_.longest_prefix(text).first; length > 0) {
    return {length, text.substr(0, length)};
  }
  const auto match = map_.find_longest(text);
  // A key that ends inside a character is a damaged map's.
  if (match && (match->length == text.size() || !is_inside_character(text[match->length]))) {
    return {match->length, match->replacement};
  }
  size_t length = 0;
  next_code_point(text, length);
  return {length, text.substr(0, length)};
}

std::string SentencePieceNormalizer::normalize(std::string_view text) const {
  if (remove_extra_whitespaces_) {
    while (!text.empty()) {
      const Front read = front(text);
      if (read.text != " ") break;
      text.remove_prefix(read.length);
    }
  }
  std::string out;
  if (text.empty()) return out;
  out.reserve(text.size() + text.size() / 2 + space_.size());
  if (add_dummy_prefix_) out += space_;
  bool behind_space = remove_extra_whitespaces_;
  for (size_t i = 0; i < text.size();) {
    if (is_plain(text, i)) {
      const size_t begin = i;
      while (i < text.size() && is_plain(text, i)) ++i;
      out += text.substr(begin, i - begin);
      behind_space = false;
      continue;
    }
    Front read = front(text.substr(i));
    i += read.length;
    while (behind_space && read.text.starts_with(' ')) read.text.remove_prefix(1);
    if (!read.text.empty()) {
      for (const char c : read.text) {
        if (c == ' ') {
          out += space_;
        } else {
          out += c;
        }
      }
      behind_space = remove_extra_whitespaces_ && read.text.ends_with(' ');
    }
  }
  if (remove_extra_whitespaces_) {
    while (out.ends_with(space_)) out.resize(out.size() - space_.size());
  }
  return out;
}

}  // namespace llmctl::runtime::tokenizer
