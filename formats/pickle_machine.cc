#include "formats/pickle_machine.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "formats/core/error.h"

namespace llmctl::formats {
namespace {

/// Opcodes that are refused, for the message.
const char* find_refused_opcode(uint8_t opcode) {
  switch (opcode) {
    case 'I':
      return "INT";
    case 'L':
      return "LONG";
    case 'S':
      return "STRING";
    case 'V':
      return "UNICODE";
    case 'F':
      return "FLOAT";
    case 'P':
      return "PERSID";
    case 'g':
      return "GET";
    case 'p':
      return "PUT";
    case 'i':
      return "INST";
    case 'o':
      return "OBJ";
    case 0x82:
      return "EXT1";
    case 0x83:
      return "EXT2";
    case 0x84:
      return "EXT4";
    case 0x97:
      return "NEXT_BUFFER";
    case 0x98:
      return "READONLY_BUFFER";
    default:
      return nullptr;
  }
}

}  // namespace

PickleMachine::PickleMachine(PickleArena& arena, std::string where, const PickleLimits& limits)
    : arena_(arena), where_(std::move(where)), limits_(limits) {
  // What the fields of a node can hold.
  limits_.max_depth = std::min<uint32_t>(limits_.max_depth, UINT16_MAX - 1);
  limits_.max_memory_bytes = std::min(limits_.max_memory_bytes, uint64_t{4} << 30);
  recent_ints_.fill(kNoNode);
  none_ = add_node(PickleKind::kNone);
  true_ = add_node(PickleKind::kBool);
  arena_[true_].flag = 1;
  false_ = add_node(PickleKind::kBool);
  empty_tuple_ = add_container(PickleKind::kTuple, {});
}

void PickleMachine::fail(const std::string& what, const std::string& hint) const {
  throw_invalid(where_, "pickle byte " + std::to_string(opcode_position_) + ": " + what, hint);
}

void PickleMachine::need(uint64_t n) const {
  if (n > remaining()) {
    fail("the pickle ends in the middle: " + std::to_string(n) + " bytes expected, " +
             std::to_string(remaining()) + " left",
         "the file is cut short or damaged; download it again");
  }
}

uint64_t PickleMachine::read_unsigned(int bytes) {
  need(static_cast<uint64_t>(bytes));
  uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) {
    value |= std::to_integer<uint64_t>(arena_.input[position_ + static_cast<uint64_t>(i)])
             << (8 * i);
  }
  position_ += static_cast<uint64_t>(bytes);
  return value;
}

int32_t PickleMachine::read_signed32() { return static_cast<int32_t>(read_unsigned(4)); }

void PickleMachine::skip(uint64_t n) {
  need(n);
  position_ += n;
}

void PickleMachine::push_long(uint64_t length) {
  need(length);
  if (length <= 8) {
    uint64_t value = read_unsigned(static_cast<int>(length));
    const unsigned unused = static_cast<unsigned>(64 - 8 * length);
    int64_t extended = 0;
    if (length != 0) extended = static_cast<int64_t>(value << unused) >> unused;
    push(add_int(extended));
    return;
  }
  if (length > limits_.max_text_bytes) fail("an integer of " + std::to_string(length) + " bytes");
  push(add_span(PickleKind::kBigInt, length));
}

void PickleMachine::push_global(uint32_t module, uint32_t name) {
  for (const uint32_t part : {module, name}) {
    if (arena_[part].kind != PickleKind::kText) fail("STACK_GLOBAL: module and name must be text");
    if (PickleArena::length(arena_[part]) > kMaxGlobalName) fail("GLOBAL: the name is too long");
  }
  const std::string_view module_text = arena_.text(module), name_text = arena_.text(name);
  if (is_suspicious_global(module_text, name_text) && !limits_.allow_suspicious) {
    fail("suspicious pickle: it names '" + printable(std::string(module_text)) + " " +
             printable(std::string(name_text)) + "', which no checkpoint needs; nothing was run",
         "do not load this file with Python; get the checkpoint from a source you trust");
  }
  const GlobalMeaning meaning = find_global(python3_module(module_text), name_text);
  const uint32_t index = add_node(PickleKind::kGlobal);
  PickleArenaNode& node = arena_[index];
  node.flag = static_cast<uint8_t>(meaning.known);
  node.low = meaning.value;
  node.global = {module, name};
  push(index);
}

void PickleMachine::append_items(size_t height) {
  if (height == 0) fail("APPENDS: no list below the mark");
  uint32_t target = stack_[height - 1];
  if (!marks_.empty() && height <= marks_.back()) fail("a mark where a list is expected");
  if (arena_[target].kind == PickleKind::kObject) {
    const uint32_t record = arena_[target].low;
    if (arena_.objects[record].list_items == kNoNode) {
      arena_.objects[record].list_items = add_container(PickleKind::kList, {});
    }
    const uint32_t list = arena_.objects[record].list_items;
    append(list, above(height));
    raise_depth(target, {&list, 1});
  } else if (arena_[target].kind == PickleKind::kList) {
    append(target, above(height));
  } else {
    fail("APPENDS to a " + std::string(pickle_kind_name(arena_[target].kind)));
  }
  stack_.resize(height);
}

void PickleMachine::set_items(size_t height) {
  if (height == 0) fail("SETITEMS: no dict below the mark");
  if (!marks_.empty() && height <= marks_.back()) fail("a mark where a dict is expected");
  const uint32_t target = stack_[height - 1];
  const auto items = above(height);
  if (items.size() % 2 != 0) fail("SETITEMS: a key without a value");
  if (arena_[target].kind == PickleKind::kObject) {
    const uint32_t record = arena_[target].low;
    if (arena_.objects[record].dict_items == kNoNode) {
      arena_.objects[record].dict_items = add_container(PickleKind::kDict, {});
    }
    const uint32_t dict = arena_.objects[record].dict_items;
    append(dict, items);
    raise_depth(target, {&dict, 1});
  } else if (arena_[target].kind == PickleKind::kDict) {
    append(target, items);
  } else {
    fail("SETITEMS on a " + std::string(pickle_kind_name(arena_[target].kind)));
  }
  stack_.resize(height);
}

void PickleMachine::add_items(size_t height) {
  if (height == 0) fail("ADDITEMS: no set below the mark");
  if (!marks_.empty() && height <= marks_.back()) fail("a mark where a set is expected");
  const uint32_t target = stack_[height - 1];
  if (arena_[target].kind != PickleKind::kSet) {
    fail("ADDITEMS to a " + std::string(pickle_kind_name(arena_[target].kind)));
  }
  append(target, above(height));
  stack_.resize(height);
}

void PickleMachine::step(uint8_t opcode) {
  switch (opcode) {
    case 0x80:  // PROTO
      skip(1);
      break;
    case 0x95:  // FRAME: only a hint for buffered readers
      skip(8);
      break;
    case '(':
      if (marks_.size() >= limits_.max_depth) {
        fail("nested deeper than " + std::to_string(limits_.max_depth) + " levels");
      }
      marks_.push_back(static_cast<uint32_t>(stack_.size()));
      break;
    case '}':
      push(add_container(PickleKind::kDict, {}));
      break;
    case ']':
      push(add_container(PickleKind::kList, {}));
      break;
    case ')':
      push(empty_tuple_);
      break;
    case 0x8F:
      push(add_container(PickleKind::kSet, {}));
      break;
    case 'N':
      push(none_);
      break;
    case 0x88:
      push(true_);
      break;
    case 0x89:
      push(false_);
      break;
    case 'K':
      push(add_int(static_cast<int64_t>(read_unsigned(1))));
      break;
    case 'M':
      push(add_int(static_cast<int64_t>(read_unsigned(2))));
      break;
    case 'J':
      push(add_int(read_signed32()));
      break;
    case 0x8A:
      push_long(read_unsigned(1));
      break;
    case 0x8B: {
      const int32_t length = read_signed32();
      if (length < 0) fail("LONG4 of negative length");
      push_long(static_cast<uint64_t>(length));
      break;
    }
    case 'G': {
      need(8);
      uint64_t bits = 0;
      for (int i = 0; i < 8; ++i) bits = bits << 8 | read_unsigned(1);
      const uint32_t index = add_node(PickleKind::kFloat);
      std::memcpy(&arena_[index].number, &bits, sizeof bits);
      push(index);
      break;
    }
    case 'X':
      push(add_span(PickleKind::kText, read_unsigned(4)));
      break;
    case 0x8C:
      push(add_span(PickleKind::kText, read_unsigned(1)));
      break;
    case 0x8D:
      push(add_span(PickleKind::kText, read_unsigned(8)));
      break;
    case 'U':
      push(add_span(PickleKind::kText, read_unsigned(1)));
      break;
    case 'T': {
      const int32_t length = read_signed32();
      if (length < 0) fail("BINSTRING of negative length");
      push(add_span(PickleKind::kText, static_cast<uint64_t>(length)));
      break;
    }
    case 'C':
      push(add_span(PickleKind::kBytes, read_unsigned(1)));
      break;
    case 'B':
      push(add_span(PickleKind::kBytes, read_unsigned(4)));
      break;
    case 0x8E:
    case 0x96:
      push(add_span(PickleKind::kBytes, read_unsigned(8)));
      break;
    case 'c': {
      const uint32_t module = add_line("module");
      push_global(module, add_line("global"));
      break;
    }
    case 0x93: {
      const uint32_t name = pop();
      push_global(pop(), name);
      break;
    }
    case 'q':
      memoize(read_unsigned(1));
      break;
    case 'r':
      memoize(read_unsigned(4));
      break;
    case 0x94:
      memoize(memo_count_);
      break;
    case 'h':
      recall(read_unsigned(1));
      break;
    case 'j':
      recall(read_unsigned(4));
      break;
    case 0x85:
    case 0x86:
    case 0x87: {
      const size_t count = opcode - size_t{0x84};
      const size_t floor = marks_.empty() ? 0 : marks_.back();
      if (stack_.size() - floor < count) {
        fail("TUPLE" + std::to_string(count) + " with fewer values on the stack");
      }
      const size_t height = stack_.size() - count;
      const uint32_t tuple = add_container(PickleKind::kTuple, above(height));
      stack_.resize(height);
      push(tuple);
      break;
    }
    case 't':
    case 'l':
    case 'd':
    case 0x91: {
      const size_t height = pop_mark();
      const PickleKind kind = opcode == 't'   ? PickleKind::kTuple
                              : opcode == 'l' ? PickleKind::kList
                              : opcode == 'd' ? PickleKind::kDict
                                              : PickleKind::kSet;
      if (opcode == 'd' && (stack_.size() - height) % 2 != 0) fail("DICT: a key without a value");
      const uint32_t index = add_container(kind, above(height));
      stack_.resize(height);
      push(index);
      break;
    }
    case 'a':
      top();
      append_items(stack_.size() - 1);
      break;
    case 'e':
      append_items(pop_mark());
      break;
    case 's': {
      const size_t floor = marks_.empty() ? 0 : marks_.back();
      if (stack_.size() - floor < 2) fail("SETITEM with fewer than two values on the stack");
      set_items(stack_.size() - 2);
      break;
    }
    case 'u':
      set_items(pop_mark());
      break;
    case 0x90:
      add_items(pop_mark());
      break;
    case 'Q': {
      const uint32_t id = pop();
      push(persistent(id));
      break;
    }
    case 'R': {
      const uint32_t arguments = pop();
      const uint32_t callable = pop();
      push(reduce(callable, arguments));
      break;
    }
    case 0x81: {
      const uint32_t arguments = pop();
      const uint32_t callable = pop();
      push(new_object(callable, arguments, kNoNode));
      break;
    }
    case 0x92: {
      const uint32_t keyword_arguments = pop();
      const uint32_t arguments = pop();
      const uint32_t callable = pop();
      push(new_object(callable, arguments, keyword_arguments));
      break;
    }
    case 'b': {
      const uint32_t state = pop();
      build(top(), state);
      break;
    }
    case '0':
      // Python lets POP take a mark away too.
      if (!marks_.empty() && stack_.size() == marks_.back()) {
        marks_.pop_back();
      } else {
        pop();
      }
      break;
    case '1':
      stack_.resize(pop_mark());
      break;
    case '2':
      push(top());
      break;
    default: {
      char hex[8];
      std::snprintf(hex, sizeof hex, "0x%02x", opcode);
      const char* name = find_refused_opcode(opcode);
      if (name != nullptr) {
        fail("opcode " + std::string(name) + " (" + hex + ") is not supported" +
                 (opcode < 0x80 ? ": it belongs to pickle protocol 0 or 1" : ""),
             "save the checkpoint again with torch.save and its default protocol");
      }
      fail(std::string("unknown opcode ") + hex, "the file is damaged; download it again");
    }
  }
}

void PickleMachine::run() {
  if (remaining() < 2 || arena_.input[0] != std::byte{0x80}) {
    const bool is_empty = remaining() < 2;
    fail(is_empty ? "the pickle is empty or cut short"
                  : "pickle protocol 0 or 1 (it does not start with PROTO)",
         is_empty ? "download the file again"
                  : "save the checkpoint again with torch.save and its default protocol");
  }
  const int protocol = std::to_integer<int>(arena_.input[1]);
  if (protocol < 2 || protocol > 5) {
    fail("pickle protocol " + std::to_string(protocol) + "; 2 to 5 are supported",
         "save the checkpoint again with torch.save and its default protocol");
  }
  // Every node, item and memo entry costs about one opcode byte, so address space for the most that
  // this input can need is reserved at once: growing in steps would touch the memory twice.
  const uint64_t size = arena_.input.size();
  const uint64_t budget = limits_.max_memory_bytes;
  arena_.nodes.reserve(
      static_cast<size_t>(std::min(size + 16, budget / sizeof(PickleArenaNode) + 1)));
  arena_.pool.reserve(static_cast<size_t>(std::min(2 * size + 16, budget / sizeof(uint32_t) + 1)));

  memo_.reserve(static_cast<size_t>(std::min(size + 1024, budget / sizeof(uint32_t) + 1)));

  for (uint64_t opcodes = 0;; ++opcodes) {
    opcode_position_ = position_;
    if (opcodes >= limits_.max_opcodes) {
      fail("more than " + std::to_string(limits_.max_opcodes) + " opcodes");
    }
    const uint8_t opcode = static_cast<uint8_t>(read_unsigned(1));
    if (opcode == '.') break;
    step(opcode);
  }
  arena_.root = pop();
  if (!stack_.empty() || !marks_.empty()) fail("STOP with values left on the stack");
  arena_.consumed_bytes = position_;
  drop_duplicate_keys();
}

}  // namespace llmctl::formats
