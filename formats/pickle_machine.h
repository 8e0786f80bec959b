// The stack machine that turns pickle opcodes into an arena of nodes, private to the pickle reader.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "formats/pickle_arena.h"

namespace llmctl::formats {

/// Longest module or name of a global.
constexpr uint64_t kMaxGlobalName = 512;

/// Runs one pickle. Opcodes are in pickle_machine.cc; memory in pickle_memory.cc; what calls, new
/// objects, states and persistent ids become is in pickle_objects.cc. Used once, by one thread.
class PickleMachine {
 public:
  PickleMachine(PickleArena& arena, std::string where, const PickleLimits& limits);

  /// Fills the arena. Throws kInvalidInput.
  void run();

 private:
  [[noreturn]] void fail(const std::string& what, const std::string& hint = {}) const;

  // Input. All check that the bytes are there.
  uint64_t remaining() const { return arena_.input.size() - position_; }
  void need(uint64_t n) const;
  uint64_t read_unsigned(int bytes);
  int32_t read_signed32();
  void skip(uint64_t n);

  // Memory. Every growth is charged to one budget before it happens.
  void charge(uint64_t bytes);
  uint32_t add_node(PickleKind kind);
  uint32_t add_int(int64_t value);
  /// A node for `length` bytes of input at the current position, which moves past them.
  uint32_t add_span(PickleKind kind, uint64_t length);
  uint32_t add_line(const char* what);
  uint32_t add_container(PickleKind kind, std::span<const uint32_t> items);
  /// A container with a copy of the items of the container `source`. A copy rather than a shared
  /// run, since the budget must bound what later passes over all items cost.
  uint32_t add_copy(PickleKind kind, uint32_t source);
  void append(uint32_t container, std::span<const uint32_t> items);
  uint32_t depth(uint32_t index) const;
  void raise_depth(uint32_t container, std::span<const uint32_t> items);

  // Stack and memo.
  void push(uint32_t index);
  uint32_t pop();
  uint32_t& top();
  /// Stack height at the last mark, which is taken away.
  size_t pop_mark();
  std::span<const uint32_t> above(size_t height) const;
  void memoize(uint64_t slot);
  void recall(uint64_t slot);

  // Opcodes with a body of their own.
  void step(uint8_t opcode);
  void push_long(uint64_t length);
  void push_global(uint32_t module, uint32_t name);
  void append_items(size_t height);
  void set_items(size_t height);
  void add_items(size_t height);

  // Meanings (pickle_objects.cc).
  uint32_t reduce(uint32_t callable, uint32_t arguments);
  uint32_t new_object(uint32_t callable, uint32_t arguments, uint32_t keyword_arguments);
  void build(uint32_t target, uint32_t state);
  uint32_t persistent(uint32_t id);
  uint32_t record_call(uint32_t callable, uint32_t arguments, bool is_new_object);
  uint32_t rebuild_tensor(int version, std::span<const uint32_t> arguments);
  void check_dimensions(uint32_t shape, uint32_t strides) const;
  int64_t get_count(uint32_t index, const char* what) const;
  uint32_t make_dict(std::span<const uint32_t> arguments, bool has_factory);

  // After STOP (pickle_keys.cc): the last of duplicate keys wins, as in Python.
  void drop_duplicate_keys();

  PickleArena& arena_;
  std::string where_;
  PickleLimits limits_;
  uint64_t position_ = 0, opcode_position_ = 0, charged_bytes_ = 0;
  std::vector<uint32_t> stack_, marks_;
  std::vector<uint32_t> memo_;
  std::unordered_map<uint64_t, uint32_t> sparse_memo_;
  uint64_t memo_count_ = 0;
  uint32_t none_, true_, false_, empty_tuple_;
  std::array<uint32_t, 1024> recent_ints_;
};

}  // namespace llmctl::formats
