#include "runtime/tokenizer/sentencepiece_proto.h"

#include <algorithm>
#include <cstdint>

#include "formats/core/error.h"

namespace llmctl::runtime::tokenizer {

namespace {

/// One field of a protobuf message: a number for varints, bytes for length-delimited ones.
struct Field {
  uint64_t number;
  uint64_t value;
  std::string_view bytes;
};

/// Walks the fields of a message (protobuf encoding guide).
class Message {
 public:
  Message(std::string_view bytes, const std::string& where) : rest_(bytes), where_(where) {}

  bool next(Field& field) {
    if (rest_.empty()) return false;
    const uint64_t tag = varint();
    field = {tag >> 3, 0, {}};
    switch (tag & 7) {
      case 0:
        field.value = varint();
        return true;
      case 1:
        field.bytes = take(8);
        return true;
      case 2:
        field.bytes = take(varint());
        return true;
      case 5:
        field.bytes = take(4);
        return true;
      default:
        broken();
    }
  }

 private:
  [[noreturn]] void broken() const {
    throw_invalid(where_, "not a SentencePiece model (malformed protobuf)");
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) broken();
      const auto byte = static_cast<uint8_t>(rest_.front());
      rest_.remove_prefix(1);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    broken();
  }
  std::string_view take(uint64_t size) {
    if (size > rest_.size()) broken();
    const std::string_view out = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return out;
  }

  std::string_view rest_;
  const std::string& where_;
};

}  // namespace

SentencePieceSettings read_sentencepiece_settings(std::string_view bytes,
                                                  const std::string& where) {
  SentencePieceSettings settings;
  Message model(bytes, where);
  for (Field part{}; model.next(part);) {
    Message message(part.bytes, where);
    if (part.number == 2) {  // trainer_spec
      for (Field field{}; message.next(field);) {
        if (field.number == 24 && field.value != 0) {
          throw_invalid(where, "treat_whitespace_as_suffix is not supported");
        }
        if (field.number == 44) settings.unk_surface = std::string(field.bytes);
      }
    } else if (part.number == 3) {  // normalizer_spec
      for (Field field{}; message.next(field);) {
        if (field.number == 3) settings.add_dummy_prefix = field.value != 0;
        if (field.number == 4) settings.remove_extra_whitespaces = field.value != 0;
      }
    } else if (part.number == 5) {  // denormalizer_spec
      for (Field field{}; message.next(field);) {
        if (field.number == 2 && !field.bytes.empty()) {
          throw_invalid(where, "a model with a denormaliser is not supported");
        }
      }
    }
  }
  return settings;
}

bool looks_like_tiktoken(std::string_view bytes) {
  const std::string_view line = bytes.substr(0, std::min(bytes.find('\n'), bytes.size()));
  const size_t space = line.find(' ');
  if (space == 0 || space == std::string_view::npos || space + 1 >= line.size()) return false;
  const auto is_base64 = [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '+' ||
           c == '/' || c == '=';
  };
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  return std::all_of(line.begin(), line.begin() + static_cast<std::ptrdiff_t>(space), is_base64) &&
         std::all_of(line.begin() + static_cast<std::ptrdiff_t>(space) + 1, line.end(), is_digit);
}

}  // namespace llmctl::runtime::tokenizer
