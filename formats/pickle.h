// Python pickles (protocols 2 to 5) read into a tree of typed nodes; nothing is imported or called.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/pickle_globals.h"

namespace llmctl::formats {

enum class PickleKind : uint8_t {
  kNone,
  kBool,
  kInt,     ///< fits int64_t
  kBigInt,  ///< any other integer: its two's complement bytes are kept
  kFloat,
  kBytes,  ///< bytes and bytearray
  kText,   ///< str, and Python 2 byte strings
  kTuple,  ///< tuple and torch.Size
  kList,
  kDict,     ///< dict, OrderedDict, defaultdict, Counter
  kSet,      ///< set and frozenset
  kGlobal,   ///< a class, function or constant, by name only
  kObject,   ///< a call that was recorded and not made: callable, arguments, state, items
  kStorage,  ///< torch storage
  kTensor,   ///< torch tensor (parameters are their tensors)
};

std::string_view pickle_kind_name(PickleKind kind);

/// Bounds on what a pickle may make the reader do. All are refusals, never truncations.
struct PickleLimits {
  uint64_t max_opcodes = 50'000'000;
  uint32_t max_depth = 1000;                     ///< of containers in containers, and of open marks
  uint64_t max_text_bytes = uint64_t{64} << 20;  ///< of one text
  /// Of nodes, item lists and memo together. About 100,000 tensors; leaves a refused file under
  /// 64 MiB resident.
  uint64_t max_memory_bytes = uint64_t{40} << 20;
  /// Keeps globals such as `os system` as plain names in the tree instead of refusing the file.
  /// They are not called either way.
  bool allow_suspicious = false;
};

class Pickle;
struct PickleArena;

/// One node of a Pickle: a handle to copy freely, which lives no longer than the Pickle.
/// `find_*` answer nothing when the node is of another kind.
class PickleNode {
 public:
  PickleNode(const PickleArena* arena, uint32_t index) : arena_(arena), index_(index) {}

  PickleKind kind() const;
  /// Identity: two nodes with one index are the same Python object.
  uint32_t index() const { return index_; }
  /// Length of the pickle that the node is of.
  uint64_t pickle_bytes() const;

  bool is_none() const { return kind() == PickleKind::kNone; }
  std::optional<bool> find_bool() const;
  std::optional<int64_t> find_int() const;
  /// A float, or an int as a float.
  std::optional<double> find_float() const;
  /// As it lies in the input: meant to be UTF-8, but not checked to be.
  std::optional<std::string_view> find_text() const;
  /// A copy of the bytes (protocol 2 keeps them as latin-1 text). For kBigInt the little-endian
  /// two's complement.
  std::optional<std::string> find_bytes() const;
  /// Where a kBytes node's bytes lie in the input, without a copy; nothing when they are recoded.
  std::optional<std::span<const std::byte>> find_raw_bytes() const;

  /// Items of a tuple, list or set; pairs of a dict; 0 for everything else.
  size_t size() const;
  /// Requires: i < size() of a tuple, list or set.
  PickleNode item(size_t i) const;
  /// Requires: i < size() of a dict. In the order in which the keys came first.
  PickleNode key(size_t i) const;
  PickleNode value(size_t i) const;
  /// The value of a text key of a dict, or of an attribute of an object whose state is a dict
  /// (argparse.Namespace). Linear in size().
  std::optional<PickleNode> find(std::string_view text_key) const;

  /// Module and name of a kGlobal node, as Python 3 spells those of builtins; empty else.
  std::string_view module() const;
  std::string_view name() const;
  bool is_global(std::string_view module_name, std::string_view global_name) const;

  /// Parts of a kObject node. A persistent id that is no storage has no callable.
  std::optional<PickleNode> callable() const;
  std::optional<PickleNode> arguments() const;          ///< a tuple as a rule
  std::optional<PickleNode> keyword_arguments() const;  ///< NEWOBJ_EX only
  std::optional<PickleNode> state() const;              ///< argument of the last BUILD
  std::optional<PickleNode> list_items() const;         ///< of a list-like class: a list
  std::optional<PickleNode> dict_items() const;         ///< of a dict-like class: a dict
  /// Whether the object came from `cls.__new__(cls, ...)` rather than from a call.
  bool is_new_object() const;

  /// Parts of a kStorage node: its key and location; for a kTensor node those of its storage.
  std::string_view storage_key() const;
  std::string_view storage_location() const;
  /// Element type. Of a tensor it may differ from that of its (untyped) storage.
  const TorchScalarType& scalar_type() const;
  /// Elements of a storage, counted in its own scalar type, without any view applied; >= 0.
  int64_t storage_num_elements() const;
  /// The part of the storage that a pre-1.6 storage view shows, in elements: offset and count. The
  /// whole storage when there is no view. Checked to lie inside the storage.
  std::pair<int64_t, int64_t> storage_view() const;

  /// Parts of a kTensor node. Offset, shape and strides are >= 0 but NOT checked against the
  /// storage; TorchFile::resolve does that.
  PickleNode tensor_storage() const;
  int64_t tensor_offset() const;  ///< in elements
  std::vector<int64_t> tensor_shape() const;
  std::vector<int64_t> tensor_strides() const;  ///< in elements

  /// A short description for messages: "dict of 3", "object of argparse.Namespace".
  std::string describe() const;

 private:
  const PickleArena* arena_;
  uint32_t index_;
};

/// A parsed pickle. Immutable; safe to share. Texts and bytes are views into the input, which must
/// outlive it. Nodes form a graph that may share parts and even contain itself: walk it with a
/// bound, not by plain recursion.
class Pickle {
 public:
  /// Parses the one pickle at the start of `bytes`. Throws kInvalidInput, naming `where` and the
  /// byte, on malformed or truncated input, on protocols 0 and 1, past `limits`, and ("suspicious
  /// pickle") on globals that no checkpoint has a use for, such as `os system`.
  static Pickle parse(std::span<const std::byte> bytes, const std::string& where,
                      const PickleLimits& limits = {});

  Pickle(Pickle&&) noexcept;
  Pickle& operator=(Pickle&&) noexcept;
  ~Pickle();

  PickleNode root() const;
  /// Position behind STOP.
  uint64_t consumed_bytes() const;
  /// Nodes are numbered 0 .. num_nodes() - 1 (some belong to nothing).
  uint32_t num_nodes() const;
  PickleNode node(uint32_t index) const;
  /// All storages, in the order of their persistent ids.
  std::vector<PickleNode> storages() const;
  /// Faults that Python forgives, one line each: duplicate keys in a dict.
  const std::vector<std::string>& notes() const;

 private:
  explicit Pickle(std::unique_ptr<PickleArena> arena);

  std::unique_ptr<PickleArena> arena_;
};

}  // namespace llmctl::formats
