// The memory of a parsed pickle: nodes and item lists by index, private to the pickle reader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/pickle.h"

namespace llmctl::formats {

constexpr uint32_t kNoNode = UINT32_MAX;

/// 16 bytes, since a hostile pickle of n bytes can ask for about n of them. Which fields mean
/// something depends on `kind`; use the accessors.
struct PickleArenaNode {
  PickleKind kind = PickleKind::kNone;
  uint8_t flag =
      0;  ///< kBool: the value; kBytes: 1 when kept as latin-1 text; kGlobal: KnownGlobal
  uint16_t high = 0;  ///< containers: depth; texts and bytes: bits 32..47 of the length
  uint32_t low = 0;   ///< containers: number of words in the pool; texts and bytes: length;
                      ///< kGlobal: KnownGlobal's value; kObject..kTensor: index of the record
  union {
    int64_t integer;
    double number;
    uint64_t offset;  ///< of the text or bytes in the input
    struct {
      uint32_t first, capacity;  ///< containers: words of the pool
    } items;
    struct {
      uint32_t module, name;  ///< kGlobal: text nodes
    } global;
  };

  PickleArenaNode() : integer(0) {}
};
static_assert(sizeof(PickleArenaNode) == 16);

struct PickleObjectRecord {
  uint32_t callable = kNoNode, arguments = kNoNode, keyword_arguments = kNoNode;
  uint32_t state = kNoNode, list_items = kNoNode, dict_items = kNoNode;
  bool is_new_object = false;
};

struct PickleStorageRecord {
  uint32_t key = kNoNode, location = kNoNode;
  uint8_t scalar_type = 0;
  int64_t num_elements = 0, view_offset = 0, view_size = 0;
};

struct PickleTensorRecord {
  uint32_t storage = kNoNode, shape = kNoNode, strides = kNoNode;
  uint8_t scalar_type = 0;
  int64_t offset = 0;
};

/// Owns every part of a parsed pickle but its input. Containers keep their items in one pool of
/// node indices, each in one contiguous run that moves to the end of the pool when it outgrows its
/// capacity; so nothing is linked by pointers and freeing never recurses.
struct PickleArena {
  std::span<const std::byte> input;
  std::vector<PickleArenaNode> nodes;
  std::vector<uint32_t> pool;
  std::vector<PickleObjectRecord> objects;
  std::vector<PickleStorageRecord> storages;
  std::vector<PickleTensorRecord> tensors;
  std::vector<uint32_t> storage_nodes;
  std::vector<std::string> notes;
  uint32_t root = kNoNode;
  uint64_t consumed_bytes = 0;

  const PickleArenaNode& operator[](uint32_t index) const { return nodes[index]; }
  PickleArenaNode& operator[](uint32_t index) { return nodes[index]; }

  static bool is_container(PickleKind kind) {
    return kind >= PickleKind::kTuple && kind <= PickleKind::kSet;
  }
  std::span<const uint32_t> items(const PickleArenaNode& node) const {
    return {pool.data() + node.items.first, node.low};
  }
  /// Of a text, bytes or big integer node.
  static uint64_t length(const PickleArenaNode& node) {
    return uint64_t{node.high} << 32 | node.low;
  }
  std::string_view text(uint32_t index) const {
    const PickleArenaNode& node = nodes[index];
    return {reinterpret_cast<const char*>(input.data()) + node.offset,
            static_cast<size_t>(length(node))};
  }
};

}  // namespace llmctl::formats
