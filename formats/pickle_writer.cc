#include "formats/pickle_writer.h"

#include <bit>
#include <cassert>
#include <utility>

#include "formats/core/error.h"

namespace llmctl::formats {
namespace {

constexpr int kMaxDepth = 1000;

const TorchScalarType& scalar_type_of(DType dtype) {
  for (const TorchScalarType& type : torch_scalar_types()) {
    if (type.dtype == dtype) return type;
  }
  throw Error(ErrorCode::kInternal, "no torch type for " + std::string(dtype_name(dtype)));
}

}  // namespace

PickleWriter::PickleWriter() : out_("\x80\x02") {}

void PickleWriter::little_endian(uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out_ += static_cast<char>(value >> (8 * i));
}

void PickleWriter::none() { op('N'); }

void PickleWriter::boolean(bool value) { op(value ? '\x88' : '\x89'); }

void PickleWriter::integer(int64_t value) {
  const uint64_t bits = static_cast<uint64_t>(value);
  if (value >= 0 && value <= 0xFF) {
    op('K');
    little_endian(bits, 1);
  } else if (value >= 0 && value <= 0xFFFF) {
    op('M');
    little_endian(bits, 2);
  } else if (value >= INT32_MIN && value <= INT32_MAX) {
    op('J');
    little_endian(bits, 4);
  } else {
    // The fewest bytes that keep the sign.
    int length = 8;
    while (length > 1 && value >> (8 * (length - 1) - 1) == value >> 63) --length;
    op('\x8a');
    little_endian(static_cast<uint64_t>(length), 1);
    little_endian(bits, length);
  }
}

void PickleWriter::big_integer(std::string_view bytes) {
  const bool is_long = bytes.size() > 0xFF;
  op(is_long ? '\x8b' : '\x8a');
  little_endian(bytes.size(), is_long ? 4 : 1);
  out_ += bytes;
}

void PickleWriter::number(double value) {
  op('G');
  const uint64_t bits = std::bit_cast<uint64_t>(value);
  for (int shift = 56; shift >= 0; shift -= 8) out_ += static_cast<char>(bits >> shift);
}

void PickleWriter::text(std::string_view value) {
  assert(value.size() <= UINT32_MAX);
  op('X');
  little_endian(value.size(), 4);
  out_ += value;
}

void PickleWriter::bytes(std::string_view value) {
  // Protocol 2 has no bytes: text of code points 0 to 255, encoded when it is loaded.
  std::string latin1;
  latin1.reserve(value.size());
  for (const char c : value) {
    const unsigned code = static_cast<unsigned char>(c);
    if (code < 0x80) {
      latin1 += c;
    } else {
      latin1 += static_cast<char>(0xC0 | code >> 6);
      latin1 += static_cast<char>(0x80 | (code & 0x3F));
    }
  }
  global("_codecs", "encode");
  text(latin1);
  text("latin1");
  op('\x86');
  op('R');
}

void PickleWriter::global(std::string_view module, std::string_view name) {
  op('c');
  out_ += module;
  out_ += '\n';
  out_ += name;
  out_ += '\n';
}

void PickleWriter::begin_items(char opcode) {
  op(opcode);
  op('(');
}

void PickleWriter::end_items(char opcode) { op(opcode); }

void PickleWriter::begin_dict() { begin_items('}'); }
void PickleWriter::end_dict() { end_items('u'); }

void PickleWriter::begin_ordered_dict() {
  global("collections", "OrderedDict");
  op(')');
  begin_items('R');
}

void PickleWriter::begin_list() { begin_items(']'); }
void PickleWriter::end_list() { end_items('e'); }
void PickleWriter::begin_tuple() { op('('); }
void PickleWriter::end_tuple() { op('t'); }

void PickleWriter::begin_namespace() {
  global("argparse", "Namespace");
  op(')');
  op('\x81');
  begin_dict();
}

void PickleWriter::end_namespace() {
  end_dict();
  op('b');
}

void PickleWriter::tensor(DType dtype, const Shape& shape, std::string_view key) {
  const auto count = checked_num_elements(shape);
  const auto size = checked_num_bytes(dtype, shape);
  if (!count || !size || *size > static_cast<uint64_t>(INT64_MAX)) {
    throw_usage("storage " + std::string(key), "the product of the tensor's axes overflows");
  }
  const TorchScalarType& type = scalar_type_of(dtype);
  const bool is_untyped = type.storage.empty();
  global("torch._utils", is_untyped ? "_rebuild_tensor_v3" : "_rebuild_tensor_v2");
  begin_tuple();
  begin_tuple();
  text("storage");
  global(is_untyped ? "torch.storage" : "torch", is_untyped ? "UntypedStorage" : type.storage);
  text(key);
  text("cpu");
  integer(is_untyped ? static_cast<int64_t>(*size) : *count);
  end_tuple();
  op('Q');
  integer(0);
  begin_tuple();
  for (const int64_t axis : shape) integer(axis);
  end_tuple();
  // Row-major strides; torch counts an axis of size 0 as 1.
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t axis = shape.size(); axis-- > 0;) {
    strides[axis] = stride;
    if (shape[axis] > 1 && __builtin_mul_overflow(stride, shape[axis], &stride)) {
      throw_usage("storage " + std::string(key), "the strides of the tensor overflow");
    }
  }
  begin_tuple();
  for (const int64_t s : strides) integer(s);
  end_tuple();
  boolean(false);  // requires_grad
  global("collections", "OrderedDict");
  op(')');
  op('R');
  if (is_untyped) global("torch", type.name);
  end_tuple();
  op('R');
}

/// What one call of `copy` knows: how often each node is used, which are in the memo, and how long
/// the output may become.
struct PickleWriter::Copy {
  const TensorCopier& tensors;
  std::unordered_map<uint32_t, uint32_t> uses;
  std::unordered_map<uint32_t, uint32_t> memo;
  size_t max_size = 0;
};

namespace {

template <typename Visit>
void for_each_part(const PickleNode& node, const Visit& visit) {
  for (size_t i = 0; i < node.size(); ++i) {
    if (node.kind() == PickleKind::kDict) {
      visit(node.key(i));
      visit(node.value(i));
    } else {
      visit(node.item(i));
    }
  }
  for (const auto& part : {node.callable(), node.arguments(), node.keyword_arguments(),
                           node.state(), node.list_items(), node.dict_items()}) {
    if (part) visit(*part);
  }
}

/// Values that take less than twelve bytes wherever they stand, against two in the pickle that was
/// read: a place in the memo would not make the copy smaller by much.
bool is_atom(PickleKind kind) {
  return kind == PickleKind::kNone || kind == PickleKind::kBool || kind == PickleKind::kInt;
}

}  // namespace

void PickleWriter::memoize(Copy& state, uint32_t index) {
  if (state.uses[index] < 2) return;
  state.memo[index] = next_memo_;
  op('r');
  little_endian(next_memo_++, 4);
}

void PickleWriter::copy(const PickleNode& node, const TensorCopier& tensors) {
  // What is shared without being one node (a name or bytes made anew from one long text), or holds
  // itself before it can be referred to, is written once per use. In a real checkpoint that is
  // little; without a bound a few bytes could stand for gigabytes.
  const size_t max_growth = 16 * node.pickle_bytes() + (size_t{64} << 10);
  Copy state{tensors, {}, {}, out_.size() + max_growth};
  std::vector<PickleNode> left{node};
  state.uses[node.index()] = 1;
  while (!left.empty()) {
    const PickleNode next = left.back();
    left.pop_back();
    for_each_part(next, [&](const PickleNode& part) {
      if (!is_atom(part.kind()) && state.uses[part.index()]++ == 0) left.push_back(part);
    });
  }
  copy_node(state, node, 0);
}

void PickleWriter::copy_items(Copy& state, const PickleNode& node, int depth) {
  for (size_t i = 0; i < node.size(); ++i) {
    if (node.kind() == PickleKind::kDict) {
      copy_node(state, node.key(i), depth);
      copy_node(state, node.value(i), depth);
    } else {
      copy_node(state, node.item(i), depth);
    }
  }
}

void PickleWriter::copy_object(Copy& state, const PickleNode& node, int depth) {
  if (!node.callable()) {
    throw_invalid("pickle", "a persistent id that is no storage cannot be copied");
  }
  copy_node(state, *node.callable(), depth);
  copy_node(state, *node.arguments(), depth);
  if (node.keyword_arguments()) {
    throw_invalid("pickle",
                  "an " + node.describe() + " made with keyword arguments cannot be copied");
  }
  op(node.is_new_object() ? '\x81' : 'R');
  memoize(state, node.index());
  if (node.list_items()) {
    op('(');
    copy_items(state, *node.list_items(), depth);
    op('e');
  }
  if (node.dict_items()) {
    op('(');
    copy_items(state, *node.dict_items(), depth);
    op('u');
  }
  if (node.state()) {
    copy_node(state, *node.state(), depth);
    op('b');
  }
}

void PickleWriter::copy_node(Copy& state, const PickleNode& node, int depth) {
  if (depth > kMaxDepth) throw_invalid("pickle", "nested deeper than 1000 levels");
  if (out_.size() > state.max_size) {
    throw_invalid("pickle",
                  "one copy of it is more than 16 times as long: no checkpoint is like that");
  }
  const auto known = state.memo.find(node.index());
  if (known != state.memo.end()) {
    op('j');
    little_endian(known->second, 4);
    return;
  }
  switch (node.kind()) {
    case PickleKind::kNone:
      return none();
    case PickleKind::kBool:
      return boolean(*node.find_bool());
    case PickleKind::kInt:
      return integer(*node.find_int());
    case PickleKind::kBigInt:
      big_integer(*node.find_bytes());
      return memoize(state, node.index());
    case PickleKind::kFloat:
      return number(*node.find_float());
    case PickleKind::kBytes: {
      const auto value = node.find_bytes();
      if (!value) throw_invalid("pickle", "bytes that are no latin-1 text cannot be copied");
      bytes(*value);
      return memoize(state, node.index());
    }
    case PickleKind::kText:
      text(*node.find_text());
      return memoize(state, node.index());
    case PickleKind::kGlobal:
      global(node.module(), node.name());
      return memoize(state, node.index());
    case PickleKind::kTuple:
      // A tuple that contains itself (through a list) meets the depth limit: no checkpoint has one.
      begin_tuple();
      copy_items(state, node, depth + 1);
      end_tuple();
      return memoize(state, node.index());
    case PickleKind::kList:
      op(']');
      memoize(state, node.index());
      op('(');
      copy_items(state, node, depth + 1);
      return end_list();
    case PickleKind::kDict:
      op('}');
      memoize(state, node.index());
      op('(');
      copy_items(state, node, depth + 1);
      return end_dict();
    case PickleKind::kSet:
      global("__builtin__", "set");
      op('(');
      begin_list();
      copy_items(state, node, depth + 1);
      end_list();
      op('t');
      op('R');
      return memoize(state, node.index());
    case PickleKind::kObject:
      return copy_object(state, node, depth + 1);
    case PickleKind::kStorage:
    case PickleKind::kTensor:
      if (!state.tensors) {
        throw_invalid("pickle",
                      "a " + node.describe() + " stands where only plain values are copied");
      }
      state.tensors(*this, node);
      return memoize(state, node.index());
  }
}

std::string PickleWriter::finish() {
  op('.');
  return std::move(out_);
}

}  // namespace llmctl::formats
