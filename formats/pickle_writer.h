// Writes pickles (protocol 2) that torch.load accepts, weights_only too where their parts allow it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "formats/core/checked.h"
#include "formats/core/dtype.h"
#include "formats/pickle.h"

namespace llmctl::formats {

/// Emits one value, part by part: the calls follow the value's structure, and `finish` gives the
/// bytes. Equal calls give equal bytes. Not thread-safe.
class PickleWriter {
 public:
  PickleWriter();

  void none();
  void boolean(bool value);
  void integer(int64_t value);
  /// From little-endian two's complement, as PickleNode::find_bytes gives it.
  void big_integer(std::string_view bytes);
  void number(double value);
  /// Requires: UTF-8 of less than 4 GiB.
  void text(std::string_view value);
  void bytes(std::string_view value);
  /// A class, function or constant by name, e.g. ("torch", "bfloat16").
  void global(std::string_view module, std::string_view name);

  /// Between the two: key, value, key, value, ...
  void begin_dict();
  void end_dict();
  /// The same for collections.OrderedDict.
  void begin_ordered_dict();
  void begin_list();
  void end_list();
  void begin_tuple();
  void end_tuple();
  /// argparse.Namespace, with attributes between the two: text, value, text, value, ... Such a file
  /// does not load with weights_only unless its reader allows the class.
  void begin_namespace();
  void end_namespace();

  /// A row-major tensor at the start of storage `key` (the K of the entry data/K), which holds
  /// exactly its elements. Throws kUsage when the shape overflows.
  void tensor(DType dtype, const Shape& shape, std::string_view key);

  /// Writes a tensor or storage that a copied tree holds.
  using TensorCopier = std::function<void(PickleWriter&, const PickleNode&)>;
  /// Copies a tree of a pickle that was read: values, globals, records of calls with their state.
  /// What is shared or contains itself stays so within one call. What the reader does not keep is
  /// lost: bytearray becomes bytes, defaultdict and Counter become dict, attributes of dicts go.
  /// `tensors` is called for tensors and storages, once for each, and writes one value; without it
  /// they throw kInvalidInput, as do nesting deeper than 1000 levels and output more than 16 times
  /// (and 64 KiB) longer than the pickle that was read.
  void copy(const PickleNode& node, const TensorCopier& tensors = {});

  /// The pickle. Requires: exactly one value was written.
  std::string finish();

 private:
  struct Copy;
  void op(char opcode) { out_ += opcode; }
  void little_endian(uint64_t value, int bytes);
  void begin_items(char opcode);
  void end_items(char opcode);
  void copy_node(Copy& state, const PickleNode& node, int depth);
  void copy_items(Copy& state, const PickleNode& node, int depth);
  void copy_object(Copy& state, const PickleNode& node, int depth);
  void memoize(Copy& state, uint32_t index);

  std::string out_;
  uint32_t next_memo_ = 0;
};

}  // namespace llmctl::formats
