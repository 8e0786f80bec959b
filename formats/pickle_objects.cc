// What calls, new objects, states and persistent ids become. Nothing is called: names that llmctl
// knows turn into typed nodes, all others into records of what Python would have called.
#include <algorithm>

#include "formats/core/checked.h"
#include "formats/core/error.h"
#include "formats/pickle_machine.h"

namespace llmctl::formats {
namespace {

constexpr size_t kMaxDimensions = 64;

KnownGlobal known_global(const PickleArenaNode& node) {
  return node.kind == PickleKind::kGlobal ? static_cast<KnownGlobal>(node.flag)
                                          : KnownGlobal::kNone;
}

}  // namespace

uint32_t PickleMachine::record_call(uint32_t callable, uint32_t arguments, bool is_new_object) {
  charge(sizeof(PickleObjectRecord));
  const uint32_t index = add_node(PickleKind::kObject);
  arena_[index].low = static_cast<uint32_t>(arena_.objects.size());
  PickleObjectRecord& record = arena_.objects.emplace_back();
  record.callable = callable;
  record.arguments = arguments;
  record.is_new_object = is_new_object;
  raise_depth(index, {&arguments, 1});
  if (callable != kNoNode) raise_depth(index, {&callable, 1});
  return index;
}

int64_t PickleMachine::get_count(uint32_t index, const char* what) const {
  const PickleArenaNode& node = arena_[index];
  if (node.kind == PickleKind::kBigInt) fail(std::string(what) + " does not fit 63 bits");
  if (node.kind != PickleKind::kInt) {
    fail(std::string(what) + " must be an integer, not a " +
         std::string(pickle_kind_name(node.kind)));
  }
  if (node.integer < 0) {
    fail(std::string(what) + " must not be negative: " + std::to_string(node.integer));
  }
  return node.integer;
}

void PickleMachine::check_dimensions(uint32_t shape, uint32_t strides) const {
  for (const uint32_t index : {shape, strides}) {
    const PickleArenaNode& node = arena_[index];
    // Only a tuple: a list could still grow after this check.
    if (node.kind != PickleKind::kTuple) {
      fail("the shape and strides of a tensor must be tuples, not a " +
           std::string(pickle_kind_name(node.kind)));
    }
    if (node.low > kMaxDimensions) {
      fail("a tensor of " + std::to_string(node.low) + " dimensions; at most " +
           std::to_string(kMaxDimensions) + " are accepted");
    }
    for (const uint32_t item : arena_.items(node)) {
      get_count(item, index == shape ? "the size of an axis" : "a stride");
    }
  }
  if (arena_[shape].low != arena_[strides].low) {
    fail("a tensor with " + std::to_string(arena_[shape].low) + " axes and " +
         std::to_string(arena_[strides].low) + " strides");
  }
}

uint32_t PickleMachine::rebuild_tensor(int version, std::span<const uint32_t> arguments) {
  const size_t required = version == 1 ? 4 : version == 2 ? 6 : 7;
  if (arguments.size() < required) {
    fail("a tensor of " + std::to_string(arguments.size()) + " arguments; " +
         std::to_string(required) + " expected");
  }
  const uint32_t storage = arguments[0];
  if (arena_[storage].kind != PickleKind::kStorage) {
    fail("a tensor whose storage is a " + std::string(pickle_kind_name(arena_[storage].kind)));
  }
  // The last argument says of a view that its values stand negated or conjugated in the storage.
  const size_t metadata = version == 3 ? 7 : 6;
  if (version > 1 && arguments.size() > metadata) {
    const PickleArenaNode& node = arena_[arguments[metadata]];
    if (node.kind != PickleKind::kNone && !(node.kind == PickleKind::kDict && node.low == 0)) {
      fail("a tensor that is a negated or conjugated view; save its .clone()");
    }
  }
  PickleTensorRecord record;
  record.storage = storage;
  record.offset = get_count(arguments[1], "the storage offset of a tensor");
  record.shape = arguments[2];
  record.strides = arguments[3];
  check_dimensions(record.shape, record.strides);
  record.scalar_type = arena_.storages[arena_[storage].low].scalar_type;
  if (version == 3) {
    // A type that is not known here is kept as a call, and so refused only as a weight.
    if (known_global(arena_[arguments[6]]) != KnownGlobal::kScalarType) return kNoNode;
    record.scalar_type = static_cast<uint8_t>(arena_[arguments[6]].low);
  }
  charge(sizeof record);
  const uint32_t index = add_node(PickleKind::kTensor);
  arena_[index].low = static_cast<uint32_t>(arena_.tensors.size());
  arena_.tensors.push_back(record);
  return index;
}

uint32_t PickleMachine::make_dict(std::span<const uint32_t> arguments, bool has_factory) {
  if (has_factory && !arguments.empty()) arguments = arguments.subspan(1);
  if (arguments.empty()) return add_container(PickleKind::kDict, {});
  if (arguments.size() > 1) return kNoNode;
  const uint32_t source = arguments[0];
  const PickleKind kind = arena_[source].kind;
  if (kind == PickleKind::kDict) return add_copy(PickleKind::kDict, source);
  if (kind != PickleKind::kList && kind != PickleKind::kTuple) return kNoNode;
  // Python 2 writes an OrderedDict as a list of pairs. The items are copied before the dict takes
  // them, since the pool they lie in may move.
  charge(2 * sizeof(uint32_t) * uint64_t{arena_[source].low});
  std::vector<uint32_t> pairs;
  pairs.reserve(2 * size_t{arena_[source].low});
  for (const uint32_t pair : arena_.items(arena_[source])) {
    const PickleArenaNode& node = arena_[pair];
    if ((node.kind != PickleKind::kTuple && node.kind != PickleKind::kList) || node.low != 2) {
      fail("an OrderedDict made of something else than pairs");
    }
    const auto items = arena_.items(node);
    pairs.insert(pairs.end(), items.begin(), items.end());
  }
  return add_container(PickleKind::kDict, pairs);
}

uint32_t PickleMachine::reduce(uint32_t callable, uint32_t arguments) {
  if (arena_[arguments].kind != PickleKind::kTuple) {
    fail("REDUCE: the arguments are a " + std::string(pickle_kind_name(arena_[arguments].kind)) +
         ", not a tuple");
  }
  const PickleArenaNode function = arena_[callable];
  const auto items = arena_.items(arena_[arguments]);
  const auto has_kind = [&](size_t i, PickleKind kind) {
    return i < items.size() && arena_[items[i]].kind == kind;
  };
  const auto is_latin1_text = [&] {
    return items.size() == 2 && has_kind(0, PickleKind::kText) && has_kind(1, PickleKind::kText) &&
           (arena_.text(items[1]) == "latin1" || arena_.text(items[1]) == "latin-1");
  };
  uint32_t result = kNoNode;
  switch (known_global(function)) {
    case KnownGlobal::kRebuildTensor:
      result = rebuild_tensor(static_cast<int>(function.low), items);
      break;
    case KnownGlobal::kRebuildParameter:
      if (has_kind(0, PickleKind::kTensor)) result = items[0];
      break;
    case KnownGlobal::kRebuildFromType:
      // Only a plain tensor with attributes: real subclasses stay records.
      if (items.size() >= 3 && known_global(arena_[items[1]]) == KnownGlobal::kTensorClass &&
          has_kind(2, PickleKind::kTuple)) {
        const KnownGlobal inner = known_global(arena_[items[0]]);
        if (inner == KnownGlobal::kRebuildTensor || inner == KnownGlobal::kRebuildParameter) {
          return reduce(items[0], items[2]);
        }
      }
      break;
    case KnownGlobal::kTorchSize:
      if (items.size() == 1 && has_kind(0, PickleKind::kTuple)) result = items[0];
      if (items.size() == 1 && has_kind(0, PickleKind::kList)) {
        result = add_copy(PickleKind::kTuple, items[0]);
      }
      break;
    case KnownGlobal::kOrderedDict:
      result = make_dict(items, function.low == 1);
      break;
    case KnownGlobal::kSet:
      if (items.empty()) result = add_container(PickleKind::kSet, {});
      if (items.size() == 1 && PickleArena::is_container(arena_[items[0]].kind) &&
          !has_kind(0, PickleKind::kDict)) {
        result = add_copy(PickleKind::kSet, items[0]);
      }
      break;
    case KnownGlobal::kBytes:
      if (items.empty()) result = add_node(PickleKind::kBytes);
      if (items.size() == 1 && has_kind(0, PickleKind::kBytes)) result = items[0];
      [[fallthrough]];
    case KnownGlobal::kEncode:
      if (is_latin1_text()) {
        result = add_node(PickleKind::kBytes);
        const PickleArenaNode text = arena_[items[0]];
        arena_[result] = text;
        arena_[result].kind = PickleKind::kBytes;
        arena_[result].flag = 1;
      }
      break;
    default:
      break;
  }
  return result != kNoNode ? result : record_call(callable, arguments, false);
}

uint32_t PickleMachine::new_object(uint32_t callable, uint32_t arguments,
                                   uint32_t keyword_arguments) {
  if (arena_[arguments].kind != PickleKind::kTuple) {
    fail("NEWOBJ: the arguments are a " + std::string(pickle_kind_name(arena_[arguments].kind)) +
         ", not a tuple");
  }
  if (known_global(arena_[callable]) == KnownGlobal::kOrderedDict && arena_[arguments].low == 0 &&
      keyword_arguments == kNoNode) {
    return add_container(PickleKind::kDict, {});
  }
  const uint32_t index = record_call(callable, arguments, true);
  if (keyword_arguments != kNoNode) {
    arena_.objects[arena_[index].low].keyword_arguments = keyword_arguments;
    raise_depth(index, {&keyword_arguments, 1});
  }
  return index;
}

void PickleMachine::build(uint32_t target, uint32_t state) {
  switch (arena_[target].kind) {
    case PickleKind::kObject:
      arena_.objects[arena_[target].low].state = state;
      raise_depth(target, {&state, 1});
      break;
    case PickleKind::kDict:    // OrderedDict from state_dict(): its _metadata
    case PickleKind::kTensor:  // attributes somebody hung on a tensor
      break;
    default:
      fail("BUILD on a " + std::string(pickle_kind_name(arena_[target].kind)));
  }
}

uint32_t PickleMachine::persistent(uint32_t id) {
  const PickleArenaNode& node = arena_[id];
  if (node.kind != PickleKind::kTuple) return record_call(kNoNode, id, false);
  const auto items = arena_.items(node);
  const bool has_tag = !items.empty() && arena_[items[0]].kind == PickleKind::kText;
  // Source text of a pickled nn.Module's class: the class itself is all that is kept.
  if (has_tag && items.size() >= 2 && arena_.text(items[0]) == "module") return items[1];
  if (!has_tag || arena_.text(items[0]) != "storage") return record_call(kNoNode, id, false);

  if (items.size() != 5 && items.size() != 6) {
    fail("a storage of " + std::to_string(items.size()) + " items; 5 or 6 expected");
  }
  if (known_global(arena_[items[1]]) != KnownGlobal::kStorageClass) {
    fail("a storage of unknown class " + printable(PickleNode(&arena_, items[1]).describe()));
  }
  for (const uint32_t item : {items[2], items[3]}) {
    if (arena_[item].kind != PickleKind::kText)
      fail("the key and location of a storage must be text");
  }
  PickleStorageRecord record;
  record.scalar_type = static_cast<uint8_t>(arena_[items[1]].low);
  record.key = items[2];
  record.location = items[3];
  record.num_elements = get_count(items[4], "the element count of a storage");
  record.view_size = record.num_elements;
  const uint64_t element_bytes =
      static_cast<uint64_t>(torch_scalar_types()[record.scalar_type].bytes);
  if (!checked_mul(static_cast<uint64_t>(record.num_elements), element_bytes)) {
    fail("a storage of " + std::to_string(record.num_elements) + " elements: its size overflows");
  }
  if (items.size() == 6 && arena_[items[5]].kind != PickleKind::kNone) {
    const PickleArenaNode& view = arena_[items[5]];
    if (view.kind != PickleKind::kTuple || view.low != 3) {
      fail("a storage view must be a tuple of three: key, offset, size");
    }
    record.view_offset = get_count(arena_.items(view)[1], "the offset of a storage view");
    record.view_size = get_count(arena_.items(view)[2], "the size of a storage view");
    if (!is_inside(static_cast<uint64_t>(record.view_offset),
                   static_cast<uint64_t>(record.view_size),
                   static_cast<uint64_t>(record.num_elements))) {
      fail("a storage view of " + std::to_string(record.view_size) + " elements at " +
           std::to_string(record.view_offset) + " of a storage of " +
           std::to_string(record.num_elements));
    }
  }
  charge(sizeof record + sizeof(uint32_t));
  const uint32_t index = add_node(PickleKind::kStorage);
  arena_[index].low = static_cast<uint32_t>(arena_.storages.size());
  arena_.storages.push_back(record);
  arena_.storage_nodes.push_back(index);
  return index;
}

}  // namespace llmctl::formats
