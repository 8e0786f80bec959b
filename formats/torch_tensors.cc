// The walk from the top-level dict of a torch file to its tensors.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "formats/core/error.h"
#include "formats/torch_file.h"

namespace llmctl::formats {
namespace {

constexpr size_t kMaxDepth = 1000;

/// A call that would have made a tensor of a kind that the machine does not interpret.
bool is_foreign_tensor(const PickleNode& node) {
  if (node.kind() != PickleKind::kObject) return false;
  const auto callable = node.callable();
  if (!callable || callable->kind() != PickleKind::kGlobal) return false;
  return (callable->module() == "torch._utils" || callable->module() == "torch._tensor") &&
         callable->name().starts_with("_rebuild_");
}

/// "sparse tensor (torch._utils._rebuild_sparse_tensor)" and the like.
std::string describe_foreign_tensor(const PickleNode& node) {
  const PickleNode callable = *node.callable();
  const std::string_view name = callable.name();
  std::string what = "tensor of an unknown kind";
  if (name.find("sparse") != std::string_view::npos) what = "sparse tensor";
  if (name.find("qtensor") != std::string_view::npos) what = "quantised tensor";
  if (name.find("nested") != std::string_view::npos) what = "nested tensor";
  if (name.find("meta") != std::string_view::npos) what = "tensor without data (meta device)";
  if (name == "_rebuild_from_type_v2" || name.find("wrapper") != std::string_view::npos) {
    what = "tensor of a subclass";
    const auto arguments = node.arguments();
    for (size_t i = 0; arguments && i < std::min<size_t>(2, arguments->size()); ++i) {
      const PickleNode item = arguments->item(i);
      if (item.kind() == PickleKind::kGlobal && !item.name().starts_with("_rebuild_")) {
        what = "tensor of the subclass " + item.describe();
      }
    }
  }
  return what + " (" + callable.describe() + ")";
}

bool is_walked(PickleKind kind) {
  return kind == PickleKind::kDict || kind == PickleKind::kList || kind == PickleKind::kTuple;
}

PickleNode child(const PickleNode& node, size_t i) {
  return node.kind() == PickleKind::kDict ? node.value(i) : node.item(i);
}

/// The part of a name that leads to child i; nothing for dict keys that are no text or number.
std::optional<std::string> child_name(const PickleNode& node, size_t i) {
  if (node.kind() != PickleKind::kDict) return std::to_string(i);
  const PickleNode key = node.key(i);
  if (const auto text = key.find_text()) return std::string(*text);
  if (const auto number = key.find_int()) return std::to_string(*number);
  return std::nullopt;
}

struct Step {
  PickleNode node;
  size_t next = 0;         ///< child to look at
  size_t name_length = 0;  ///< of the path that leads to `node`
};

/// Flags of a container.
constexpr uint8_t kSeen = 1, kOnPath = 2, kHasTensors = 4;

/// For every container below `root`, whether a tensor is below it. Without this a small pickle in
/// which tuples share tuples could lead along more paths than anybody can walk. Throws when a
/// container holds itself.
std::vector<uint8_t> mark_containers(const Pickle& pickle, const std::string& where) {
  std::vector<uint8_t> flags(pickle.num_nodes(), 0);
  std::vector<Step> path{{pickle.root()}};
  flags[pickle.root().index()] = kSeen | kOnPath;
  while (!path.empty()) {
    Step& step = path.back();
    uint8_t& own = flags[step.node.index()];
    if (step.next == step.node.size()) {
      own = static_cast<uint8_t>(own & ~kOnPath);
      const uint8_t has_tensors = own & kHasTensors;
      path.pop_back();
      if (!path.empty()) flags[path.back().node.index()] |= has_tensors;
      continue;
    }
    const PickleNode next = child(step.node, step.next++);
    if (next.kind() == PickleKind::kTensor || is_foreign_tensor(next)) {
      own |= kHasTensors;
    } else if (is_walked(next.kind())) {
      uint8_t& other = flags[next.index()];
      if ((other & kOnPath) != 0) {
        throw_invalid(where,
                      "a " + std::string(pickle_kind_name(next.kind())) + " that contains itself");
      }
      own |= other & kHasTensors;
      if ((other & kSeen) == 0) {
        if (path.size() >= kMaxDepth) {
          throw_invalid(where, "nested deeper than " + std::to_string(kMaxDepth) + " levels");
        }
        other = kSeen | kOnPath;
        path.push_back({next});
      }
    }
  }
  return flags;
}

void refuse_top_level(const PickleNode& root, const std::string& where) {
  if (root.kind() == PickleKind::kObject) {
    throw_invalid(where, "a pickled " + root.describe() + ", not a dict of tensors",
                  "load it with PyTorch and save its state_dict()");
  }
  throw_invalid(where, "its top level is a " + root.describe() + ", not a dict of tensors");
}

}  // namespace

void TorchFile::list_tensors(int file, std::vector<StoredTensor>& out,
                             std::vector<std::string>& notes) const {
  const std::string where = path_.string();
  if (!is_walked(root().kind())) refuse_top_level(root(), where);
  const std::vector<uint8_t> flags = mark_containers(*pickle_, where);

  // Containers and prefixes may be shared, so what comes out must be bounded by what went in.
  const uint64_t max_visits = 4 * uint64_t{pickle_->num_nodes()} + 1000;
  const uint64_t max_name_bytes = 4 * pickle_bytes() + (uint64_t{1} << 20);
  uint64_t visits = 0, name_bytes = 0;
  const size_t first = out.size();
  bool has_unnamed = false;
  std::string name;
  std::vector<Step> path{{root()}};
  while (!path.empty()) {
    Step& step = path.back();
    name.resize(step.name_length);
    if (step.next == step.node.size()) {
      path.pop_back();
      continue;
    }
    const size_t i = step.next++;
    const PickleNode next = child(step.node, i);
    const bool is_tensor = next.kind() == PickleKind::kTensor || is_foreign_tensor(next);
    const bool is_entered = is_walked(next.kind()) && (flags[next.index()] & kHasTensors) != 0;
    if (!is_tensor && !is_entered) continue;
    const auto part = child_name(step.node, i);
    if (!part) {
      has_unnamed = true;
      continue;
    }
    if (path.size() > 1) name += '.';
    name += *part;
    name_bytes += name.size();
    if (++visits > max_visits || name_bytes > max_name_bytes) {
      throw_invalid(where,
                    "its dicts share their parts so often that its list of tensors is out of "
                    "proportion to the file");
    }
    if (is_entered) {
      path.push_back({next, 0, name.size()});
      continue;
    }
    if (printable(name, name.size() + 1) != name) {
      throw_invalid(where, "tensor name '" + printable(name) + "' is no printable UTF-8");
    }
    if (next.kind() != PickleKind::kTensor) {
      throw_invalid(where,
                    "'" + printable(name) + "' is a " + describe_foreign_tensor(next) +
                        ", which llmctl cannot read",
                    "load the file with PyTorch and save plain tensors");
    }
    out.push_back(resolve(next, name, file));
  }

  std::vector<const StoredTensor*> by_name;
  for (size_t i = first; i < out.size(); ++i) by_name.push_back(&out[i]);
  std::sort(by_name.begin(), by_name.end(),
            [](const auto* a, const auto* b) { return a->name < b->name; });
  const auto duplicate =
      std::adjacent_find(by_name.begin(), by_name.end(),
                         [](const auto* a, const auto* b) { return a->name == b->name; });
  if (duplicate != by_name.end()) {
    throw_invalid(where, "two tensors are named '" + printable((*duplicate)->name) + "'");
  }
  if (has_unnamed) {
    notes.push_back(where + ": tensors under dict keys that are no text are left out");
  }
  notes.insert(notes.end(), pickle_->notes().begin(), pickle_->notes().end());
}

}  // namespace llmctl::formats
