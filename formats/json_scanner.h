// A pull reader for JSON that cannot be trusted and may be too large to hold: constant memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace llmctl::formats {

/// Walks one JSON text in order. The caller says what it expects next; anything else, malformed
/// JSON, invalid UTF-8 and nesting deeper than 64 throw kInvalidInput naming `where` and the byte.
/// Holds one window of text at a time. Not thread-safe.
class JsonScanner {
 public:
  /// The next part of the text, empty at its end. Valid until the next call.
  using Refill = std::function<std::span<const std::byte>()>;

  JsonScanner(Refill refill, std::string where);

  void enter_object();
  /// Reads the next key of the innermost open object; false at its end, which closes it. Keys
  /// are not compared with each other: what may repeat is the caller's business. A key longer
  /// than `max_bytes` is refused.
  bool next_key(std::string& key, size_t max_bytes);
  void enter_array();
  /// Whether another element follows in the innermost open array; false closes it.
  bool next_element();

  /// A text of at most `max_bytes` bytes, unescaped, valid UTF-8.
  std::string read_text(size_t max_bytes);
  /// An integer in [0, 2^64) written with digits only.
  uint64_t read_size();
  /// Whether the next value is a text, or an object.
  bool is_at_text();
  bool is_at_object();
  /// Any value; its number when it is one in [0, 2^64) written with digits only, else nothing.
  std::optional<uint64_t> read_any_size();
  /// Reads and checks any value without keeping it.
  void skip_value();
  /// Checks that nothing but spaces follows, or with `any_white_space` tabs and line ends too.
  void finish(bool any_white_space);

  /// Ends the scan: `what` at the current byte.
  [[noreturn]] void fail(const std::string& what) const;

 private:
  int peek();  ///< the next byte, or -1 at the end
  int take();
  void skip_white_space();
  void expect(char c, const char* what);
  void open(char c, const char* what);
  bool next_item(char close);
  /// `out` null: checks only.
  void read_text_into(std::string* out, size_t max_bytes);
  uint32_t read_code_unit();
  bool skip_fraction_and_exponent();  ///< whether there was any
  void skip_number();
  void skip_word(const char* word);

  Refill refill_;
  std::string where_;
  std::span<const std::byte> window_;
  size_t next_ = 0;        ///< in window_
  uint64_t consumed_ = 0;  ///< bytes before window_
  bool at_end_ = false;
  std::vector<bool> has_items_;  ///< one per open container
};

}  // namespace llmctl::formats
