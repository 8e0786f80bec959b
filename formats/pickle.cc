#include "formats/pickle.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "formats/core/error.h"
#include "formats/pickle_machine.h"

namespace llmctl::formats {
namespace {

/// The bytes that latin-1 encoding makes of UTF-8 text; nothing when a code point is above 255.
std::optional<std::string> encode_latin1(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned c = static_cast<unsigned char>(text[i]);
    if (c < 0x80) {
      out.push_back(static_cast<char>(c));
    } else {
      if ((c != 0xC2 && c != 0xC3) || ++i == text.size()) return std::nullopt;
      const unsigned next = static_cast<unsigned char>(text[i]);
      if ((next & 0xC0) != 0x80) return std::nullopt;
      out.push_back(static_cast<char>((c & 3) << 6 | (next & 0x3F)));
    }
  }
  return out;
}

}  // namespace

std::string_view pickle_kind_name(PickleKind kind) {
  constexpr std::string_view kNames[] = {"None",  "bool",   "int",    "big int", "float",
                                         "bytes", "text",   "tuple",  "list",    "dict",
                                         "set",   "global", "object", "storage", "tensor"};
  return kNames[static_cast<size_t>(kind)];
}

PickleKind PickleNode::kind() const { return (*arena_)[index_].kind; }

uint64_t PickleNode::pickle_bytes() const { return arena_->consumed_bytes; }

std::optional<bool> PickleNode::find_bool() const {
  if (kind() != PickleKind::kBool) return std::nullopt;
  return (*arena_)[index_].flag != 0;
}

std::optional<int64_t> PickleNode::find_int() const {
  if (kind() != PickleKind::kInt) return std::nullopt;
  return (*arena_)[index_].integer;
}

std::optional<double> PickleNode::find_float() const {
  if (kind() == PickleKind::kInt) return static_cast<double>((*arena_)[index_].integer);
  if (kind() != PickleKind::kFloat) return std::nullopt;
  return (*arena_)[index_].number;
}

std::optional<std::string_view> PickleNode::find_text() const {
  if (kind() != PickleKind::kText) return std::nullopt;
  return arena_->text(index_);
}

std::optional<std::string> PickleNode::find_bytes() const {
  if (kind() != PickleKind::kBytes && kind() != PickleKind::kBigInt) return std::nullopt;
  if ((*arena_)[index_].flag == 1) return encode_latin1(arena_->text(index_));
  return std::string(arena_->text(index_));
}

std::optional<std::span<const std::byte>> PickleNode::find_raw_bytes() const {
  if (kind() != PickleKind::kBytes || (*arena_)[index_].flag == 1) return std::nullopt;
  return std::as_bytes(std::span(arena_->text(index_)));
}

size_t PickleNode::size() const {
  if (!PickleArena::is_container(kind())) return 0;
  const size_t words = (*arena_)[index_].low;
  return kind() == PickleKind::kDict ? words / 2 : words;
}

PickleNode PickleNode::item(size_t i) const {
  assert(kind() != PickleKind::kDict && i < size());
  return {arena_, arena_->items((*arena_)[index_])[i]};
}

PickleNode PickleNode::key(size_t i) const {
  assert(kind() == PickleKind::kDict && i < size());
  return {arena_, arena_->items((*arena_)[index_])[2 * i]};
}

PickleNode PickleNode::value(size_t i) const {
  assert(kind() == PickleKind::kDict && i < size());
  return {arena_, arena_->items((*arena_)[index_])[2 * i + 1]};
}

std::optional<PickleNode> PickleNode::find(std::string_view text_key) const {
  if (kind() == PickleKind::kObject) {
    const auto attributes = state();
    if (!attributes || attributes->kind() != PickleKind::kDict) return std::nullopt;
    return attributes->find(text_key);
  }
  if (kind() != PickleKind::kDict) return std::nullopt;
  for (size_t i = 0; i < size(); ++i) {
    if (key(i).find_text() == text_key) return value(i);
  }
  return std::nullopt;
}

std::string_view PickleNode::module() const {
  if (kind() != PickleKind::kGlobal) return {};
  return python3_module(arena_->text((*arena_)[index_].global.module));
}

std::string_view PickleNode::name() const {
  if (kind() != PickleKind::kGlobal) return {};
  const auto& names = (*arena_)[index_].global;
  return python3_name(arena_->text(names.module), arena_->text(names.name));
}

bool PickleNode::is_global(std::string_view module_name, std::string_view global_name) const {
  return kind() == PickleKind::kGlobal && module() == module_name && name() == global_name;
}

namespace {

std::optional<PickleNode> find_part(const PickleArena* arena, uint32_t index,
                                    uint32_t PickleObjectRecord::*part) {
  const PickleArenaNode& node = (*arena)[index];
  if (node.kind != PickleKind::kObject) return std::nullopt;
  const uint32_t found = arena->objects[node.low].*part;
  if (found == kNoNode) return std::nullopt;
  return PickleNode(arena, found);
}

}  // namespace

std::optional<PickleNode> PickleNode::callable() const {
  return find_part(arena_, index_, &PickleObjectRecord::callable);
}
std::optional<PickleNode> PickleNode::arguments() const {
  return find_part(arena_, index_, &PickleObjectRecord::arguments);
}
std::optional<PickleNode> PickleNode::keyword_arguments() const {
  return find_part(arena_, index_, &PickleObjectRecord::keyword_arguments);
}
std::optional<PickleNode> PickleNode::state() const {
  return find_part(arena_, index_, &PickleObjectRecord::state);
}
std::optional<PickleNode> PickleNode::list_items() const {
  return find_part(arena_, index_, &PickleObjectRecord::list_items);
}
std::optional<PickleNode> PickleNode::dict_items() const {
  return find_part(arena_, index_, &PickleObjectRecord::dict_items);
}

bool PickleNode::is_new_object() const {
  return kind() == PickleKind::kObject && arena_->objects[(*arena_)[index_].low].is_new_object;
}

namespace {

/// The storage record of a storage, or of a tensor's storage.
const PickleStorageRecord& get_storage(const PickleArena& arena, uint32_t index) {
  const PickleArenaNode* node = &arena[index];
  if (node->kind == PickleKind::kTensor) node = &arena[arena.tensors[node->low].storage];
  assert(node->kind == PickleKind::kStorage);
  return arena.storages[node->low];
}

const PickleTensorRecord& get_tensor(const PickleArena& arena, uint32_t index) {
  assert(arena[index].kind == PickleKind::kTensor);
  return arena.tensors[arena[index].low];
}

std::vector<int64_t> get_integers(const PickleArena& arena, uint32_t tuple) {
  std::vector<int64_t> out;
  for (const uint32_t item : arena.items(arena[tuple])) out.push_back(arena[item].integer);
  return out;
}

}  // namespace

std::string_view PickleNode::storage_key() const {
  return arena_->text(get_storage(*arena_, index_).key);
}

std::string_view PickleNode::storage_location() const {
  return arena_->text(get_storage(*arena_, index_).location);
}

const TorchScalarType& PickleNode::scalar_type() const {
  return torch_scalar_types()[kind() == PickleKind::kTensor
                                  ? get_tensor(*arena_, index_).scalar_type
                                  : get_storage(*arena_, index_).scalar_type];
}

int64_t PickleNode::storage_num_elements() const {
  return get_storage(*arena_, index_).num_elements;
}

std::pair<int64_t, int64_t> PickleNode::storage_view() const {
  const PickleStorageRecord& record = get_storage(*arena_, index_);
  return {record.view_offset, record.view_size};
}

PickleNode PickleNode::tensor_storage() const {
  return {arena_, get_tensor(*arena_, index_).storage};
}

int64_t PickleNode::tensor_offset() const { return get_tensor(*arena_, index_).offset; }

std::vector<int64_t> PickleNode::tensor_shape() const {
  return get_integers(*arena_, get_tensor(*arena_, index_).shape);
}

std::vector<int64_t> PickleNode::tensor_strides() const {
  return get_integers(*arena_, get_tensor(*arena_, index_).strides);
}

std::string PickleNode::describe() const {
  const std::string kind_name(pickle_kind_name(kind()));
  if (PickleArena::is_container(kind())) return kind_name + " of " + std::to_string(size());
  if (kind() == PickleKind::kGlobal) {
    return printable(std::string(module())) + "." + printable(std::string(name()));
  }
  if (kind() == PickleKind::kObject) {
    const auto called = callable();
    // getattr(Class, 'NAME') and the like have a call for a callable; one level is enough here.
    if (called && called->kind() == PickleKind::kGlobal) return "object of " + called->describe();
  }
  return kind_name;
}

Pickle::Pickle(std::unique_ptr<PickleArena> arena) : arena_(std::move(arena)) {}
Pickle::Pickle(Pickle&&) noexcept = default;
Pickle& Pickle::operator=(Pickle&&) noexcept = default;
Pickle::~Pickle() = default;

Pickle Pickle::parse(std::span<const std::byte> bytes, const std::string& where,
                     const PickleLimits& limits) {
  auto arena = std::make_unique<PickleArena>();
  arena->input = bytes;
  PickleMachine(*arena, where, limits).run();
  return Pickle(std::move(arena));
}

PickleNode Pickle::root() const { return {arena_.get(), arena_->root}; }
uint64_t Pickle::consumed_bytes() const { return arena_->consumed_bytes; }
uint32_t Pickle::num_nodes() const { return static_cast<uint32_t>(arena_->nodes.size()); }
PickleNode Pickle::node(uint32_t index) const { return {arena_.get(), index}; }

std::vector<PickleNode> Pickle::storages() const {
  std::vector<PickleNode> out;
  for (const uint32_t index : arena_->storage_nodes) out.emplace_back(arena_.get(), index);
  return out;
}

const std::vector<std::string>& Pickle::notes() const { return arena_->notes; }

}  // namespace llmctl::formats
