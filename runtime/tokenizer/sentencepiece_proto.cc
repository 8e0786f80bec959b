#include "runtime/tokenizer/sentencepiece_proto.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "formats/core/error.h"
#include "runtime/tokenizer/unicode.h"

namespace llmctl::runtime::tokenizer {

namespace {

/// One field of a protobuf message: a number for varints, bytes for length-delimited ones.
struct Field {
  uint64_t number;
  uint64_t value;
  std::string_view bytes;

  /// Requires: 4 bytes.
  float as_float() const {
    uint32_t bits = 0;
    for (size_t i = 4; i-- > 0;) bits = bits << 8 | static_cast<uint8_t>(bytes[i]);
    return std::bit_cast<float>(bits);
  }
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

[[noreturn]] void refuse(const std::string& where, const std::string& what) {
  throw_invalid(where, "not a SentencePiece model (" + what + ")");
}

SentencePiece read_piece(std::string_view bytes, const std::string& where) {
  SentencePiece piece;
  Message message(bytes, where);
  for (Field field{}; message.next(field);) {
    if (field.number == 1) piece.spelling = std::string(field.bytes);
    if (field.number == 2 && field.bytes.size() == 4) piece.score = field.as_float();
    if (field.number == 3) {
      // A value that the format does not know is no value (protobuf, closed enums of proto2).
      if (field.value >= 1 && field.value <= 6) {
        piece.type = static_cast<SentencePiece::Type>(field.value);
      }
    }
  }
  return piece;
}

void read_trainer(std::string_view bytes, SentencePieceProto& proto, const std::string& where) {
  Message message(bytes, where);
  for (Field field{}; message.next(field);) {
    // An empty name is no name.
    const auto name = [&](std::string& target) {
      if (!field.bytes.empty()) target = std::string(field.bytes);
    };
    switch (field.number) {
      case 3:
        if (field.value >= 1 && field.value <= 4) {
          proto.kind = static_cast<SentencePieceProto::Kind>(field.value);
        }
        break;
      case 24:
        if (field.value != 0) {
          throw_invalid(where, "treat_whitespace_as_suffix is not supported");
        }
        break;
      case 35:
        proto.byte_fallback = field.value != 0;
        break;
      case 44:
        proto.unk_surface = std::string(field.bytes);
        break;
      case 46:
        name(proto.bos_piece);
        break;
      case 47:
        name(proto.eos_piece);
        break;
      default:
        break;
    }
  }
}

void read_normalizer(std::string_view bytes, SentencePieceProto& proto, const std::string& where) {
  Message message(bytes, where);
  for (Field field{}; message.next(field);) {
    if (field.number == 2) proto.charsmap = std::string(field.bytes);
    if (field.number == 3) proto.add_dummy_prefix = field.value != 0;
    if (field.number == 4) proto.remove_extra_whitespaces = field.value != 0;
    if (field.number == 5) proto.escape_whitespaces = field.value != 0;
  }
}

void check_pieces(const SentencePieceProto& proto, const std::string& where) {
  if (proto.pieces.size() > size_t{std::numeric_limits<int32_t>::max()} / 4) {
    refuse(where, std::to_string(proto.pieces.size()) + " pieces");
  }
  std::array<bool, 256> bytes{};
  bool has_unknown = false;
  for (const SentencePiece& piece : proto.pieces) {
    const std::string name = "piece '" + printable(piece.spelling, 60) + "'";
    if (piece.spelling.empty()) refuse(where, "an empty piece");
    if (!is_valid_utf8(piece.spelling)) refuse(where, name + " is not UTF-8");
    if (std::isnan(piece.score)) refuse(where, name + " has a score that is not a number");
    if (piece.type == SentencePiece::Type::kUnknown) {
      if (has_unknown) refuse(where, "two unknown pieces");
      has_unknown = true;
    }
    if (piece.type == SentencePiece::Type::kByte) {
      const int byte = byte_of_piece(piece.spelling);
      if (!proto.byte_fallback) refuse(where, "a byte " + name + " without byte_fallback");
      if (byte < 0) refuse(where, "byte " + name + " is not <0xNN>");
      bytes[static_cast<size_t>(byte)] = true;
    }
  }
  if (!has_unknown) refuse(where, "no unknown piece");
  if (proto.byte_fallback && !std::all_of(bytes.begin(), bytes.end(), [](bool b) { return b; })) {
    refuse(where, "byte_fallback without 256 byte pieces");
  }
}

}  // namespace

SentencePieceProto read_sentencepiece(std::string_view bytes, const std::string& where) {
  SentencePieceProto proto;
  Message model(bytes, where);
  for (Field part{}; model.next(part);) {
    switch (part.number) {
      case 1:
        proto.pieces.push_back(read_piece(part.bytes, where));
        break;
      case 2:
        read_trainer(part.bytes, proto, where);
        break;
      case 3:
        read_normalizer(part.bytes, proto, where);
        break;
      case 5: {
        Message denormalizer(part.bytes, where);
        for (Field field{}; denormalizer.next(field);) {
          if (field.number == 2 && !field.bytes.empty()) {
            throw_invalid(where, "a model with a denormaliser is not supported");
          }
        }
        break;
      }
      default:
        break;
    }
  }
  check_pieces(proto, where);
  return proto;
}

int byte_of_piece(std::string_view spelling) {
  if (spelling.size() != 6 || !spelling.starts_with("<0x") || spelling[5] != '>') return -1;
  int byte = 0;
  for (const char c : spelling.substr(3, 2)) {
    if (c >= '0' && c <= '9') {
      byte = byte * 16 + (c - '0');
    } else if (c >= 'A' && c <= 'F') {
      byte = byte * 16 + (c - 'A' + 10);
    } else {
      return -1;
    }
  }
  return byte;
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
