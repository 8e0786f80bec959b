#include "runtime/tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "formats/core/error.h"

namespace llmctl::runtime::tokenizer {

namespace {

uint8_t byte_at(std::string_view bytes, size_t i) { return static_cast<uint8_t>(bytes[i]); }

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

/// utf8proc orders combining marks by neighbouring swaps, quadratic in the length of a run. Text
/// has runs of two or three, an attack a million: the long ones are ordered here, stably, which is
/// what canonical ordering would make of them.
std::string order_long_mark_runs(std::string_view text) {
  constexpr size_t kShortRun = 32;
  const auto mark_class = [](char32_t c) {
    return utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class;
  };
  std::string out;
  std::vector<char32_t> run;
  size_t run_begin = 0, copied = 0;
  const auto end_run = [&](size_t end) {
    if (run.size() > kShortRun) {
      std::stable_sort(run.begin(), run.end(),
                       [&](char32_t a, char32_t b) { return mark_class(a) < mark_class(b); });
      out += text.substr(copied, run_begin - copied);
      for (const char32_t c : run) append_utf8(c, out);
      copied = end;
    }
    run.clear();
  };
  for (size_t position = 0; position < text.size();) {
    const size_t begin = position;
    const char32_t c = next_code_point(text, position);
    // Three vowel signs are of class 0 and two marks once they are decomposed, in every form.
    const char32_t second = c == 0xF73 ? 0xF72 : c == 0xF75 ? 0xF74 : c == 0xF81 ? 0xF80 : 0;
    if (c < 0x300 || (mark_class(c) == 0 && second == 0)) {
      if (!run.empty()) end_run(begin);
      continue;
    }
    if (run.empty()) run_begin = begin;
    run.push_back(second == 0 ? c : 0xF71);
    if (second != 0) run.push_back(second);
  }
  end_run(text.size());
  if (copied == 0) return std::string(text);
  out += text.substr(copied);
  return out;
}

/// Requires: no U+11A7.
std::string map_unicode(std::string_view source, NormalForm form) {
  const std::string text = order_long_mark_runs(source);
  int options = UTF8PROC_STABLE;
  options |=
      form == NormalForm::kNfc || form == NormalForm::kNfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == NormalForm::kNfkc || form == NormalForm::kNfkd) options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* buffer = nullptr;
  const utf8proc_ssize_t length = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
      static_cast<utf8proc_ssize_t>(text.size()), &buffer, static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(buffer, &std::free);
  if (length < 0) {
    throw Error(ErrorCode::kInternal, std::string("utf8proc: ") + utf8proc_errmsg(length));
  }
  return {reinterpret_cast<const char*>(buffer), static_cast<size_t>(length)};
}

}  // namespace

Utf8Front classify_utf8(std::string_view bytes) {
  const uint8_t lead = byte_at(bytes, 0);
  if (lead < 0x80) return {Utf8Kind::kCharacter, 1, lead};
  // The second byte's range carries all of UTF-8's special rules: no overlong forms, no
  // surrogates, nothing above U+10FFFF (Unicode table 3-7).
  uint8_t low = 0x80, high = 0xBF;
  size_t length = 0;
  char32_t c = 0;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2, c = lead & 0x1Fu;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3, c = lead & 0x0Fu;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4, c = lead & 0x07u;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {Utf8Kind::kInvalid, 1, 0};
  }
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Utf8Kind::kTruncated, i, 0};
    const uint8_t next = byte_at(bytes, i);
    if (next < low || next > high) return {Utf8Kind::kInvalid, i, 0};
    low = 0x80, high = 0xBF;
    c = (c << 6) | (next & 0x3Fu);
  }
  return {Utf8Kind::kCharacter, length, c};
}

bool is_valid_utf8(std::string_view bytes) {
  while (!bytes.empty()) {
    const Utf8Front front = classify_utf8(bytes);
    if (front.kind != Utf8Kind::kCharacter) return false;
    bytes.remove_prefix(front.length);
  }
  return true;
}

std::string to_valid_utf8(std::string_view bytes) {
  if (is_valid_utf8(bytes)) return std::string(bytes);
  Utf8Repairer repairer;
  std::string text;
  repairer.push(bytes, text);
  repairer.finish(text);
  return text;
}

void Utf8Repairer::push(std::string_view bytes, std::string& text) {
  pending_ += bytes;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Front front = classify_utf8(rest);
    if (front.kind == Utf8Kind::kTruncated) break;
    text +=
        front.kind == Utf8Kind::kCharacter ? rest.substr(0, front.length) : kReplacementCharacter;
    rest.remove_prefix(front.length);
  }
  pending_.erase(0, pending_.size() - rest.size());
}

void Utf8Repairer::finish(std::string& text) {
  if (!pending_.empty()) text += kReplacementCharacter;
  pending_.clear();
}

void append_utf8(char32_t code_point, std::string& text) {
  utf8proc_uint8_t buffer[4];
  const utf8proc_ssize_t length =
      utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), buffer);
  text.append(reinterpret_cast<const char*>(buffer), static_cast<size_t>(length));
}

char32_t next_code_point(std::string_view text, size_t& position) {
  const Utf8Front front = classify_utf8(text.substr(position));
  position += front.length;
  return front.code_point;
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_word_character(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      // Join_Control, and the alphabetic symbols: circled and squared Latin letters.
      return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
             (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
             (c >= 0x1F170 && c <= 0x1F189);
  }
}

bool is_numeric(char32_t c) {
  const utf8proc_category_t kind = category(c);
  return kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL ||
         kind == UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t c) {
  if (c < 0x80) {
    return (c >= 0x21 && c <= 0x2F) || (c >= 0x3A && c <= 0x40) || (c >= 0x5B && c <= 0x60) ||
           (c >= 0x7B && c <= 0x7E);
  }
  const utf8proc_category_t kind = category(c);
  return kind >= UTF8PROC_CATEGORY_PC && kind <= UTF8PROC_CATEGORY_PO;
}

bool is_combining_mark(char32_t c) {
  const utf8proc_category_t kind = category(c);
  return kind >= UTF8PROC_CATEGORY_MN && kind <= UTF8PROC_CATEGORY_ME;
}

void append_lowercase(char32_t c, std::string& text) {
  // U+0130 is the one character whose full lower-case mapping is two characters long.
  if (c == 0x130) {
    text += "i\xCC\x87";
    return;
  }
  append_utf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), text);
}

std::string normalize_unicode(std::string_view source, NormalForm form) {
  if (is_ascii(source)) return std::string(source);
  // U+11A7 stands just before the trailing consonants of Hangul and composes with nothing; utf8proc
  // takes it for one behind a syllable and loses it. It keeps what is around it apart.
  constexpr std::string_view kNoConsonant = "\xE1\x86\xA7";
  std::string out;
  while (true) {
    const size_t end = source.find(kNoConsonant);
    out += map_unicode(source.substr(0, end), form);
    if (end == std::string_view::npos) return out;
    out += kNoConsonant;
    source.remove_prefix(end + kNoConsonant.size());
  }
}

size_t character_before(std::string_view text, size_t end) {
  do {
    --end;
  } while ((static_cast<uint8_t>(text[end]) & 0xC0) == 0x80);
  return end;
}

}  // namespace llmctl::runtime::tokenizer
