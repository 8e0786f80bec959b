// Numbers and texts packed into bytes for another process of the same program.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "formats/core/error.h"

namespace llmctl {

/// Appends; a plain value.
class MessageWriter {
 public:
  void number(uint64_t value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void text(std::string_view value) {
    number(value.size());
    bytes_.append(value);
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

/// Takes in the order of writing. Throws kInternal past the end. Texts live as long as the bytes.
class MessageReader {
 public:
  explicit MessageReader(std::string_view bytes) : bytes_(bytes) {}
  uint64_t number() {
    uint64_t value = 0;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::string_view text() { return take(number()); }
  bool is_at_end() const { return bytes_.empty(); }

 private:
  std::string_view take(uint64_t size) {
    if (size > bytes_.size()) {
      throw Error(ErrorCode::kInternal, "a message between processes is too short");
    }
    const std::string_view value = bytes_.substr(0, static_cast<size_t>(size));
    bytes_.remove_prefix(static_cast<size_t>(size));
    return value;
  }

  std::string_view bytes_;
};

}  // namespace llmctl
