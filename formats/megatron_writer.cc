#include "formats/megatron_writer.h"

#include <algorithm>
#include <map>
#include <set>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/pickle_writer.h"
#include "formats/torch_writer.h"

namespace llmctl::formats {
namespace {

/// A level of the nested dicts, or a tensor.
struct Level {
  std::string key;
  std::vector<Level> children;
  int tensor = -1;

  Level& child(const std::string& name) {
    for (Level& level : children) {
      if (level.key == name) return level;
    }
    children.emplace_back().key = name;
    return children.back();
  }
};

/// The keys that lead to a tensor inside its model dict. Megatron nests down to the module that has
/// a state_dict of its own, which is flat.
std::vector<std::string> keys_of(const std::string& name, bool flat) {
  if (flat) return {name};
  std::vector<std::string> keys;
  std::string rest = name;
  const auto take = [&] {
    const size_t dot = rest.find('.');
    if (dot == std::string::npos) return;
    keys.push_back(rest.substr(0, dot));
    rest.erase(0, dot + 1);
  };
  take();
  if (keys.back() == "language_model") {
    take();
    if (keys.back() == "embedding") take();
  }
  keys.push_back(rest);
  return keys;
}

void write_value(PickleWriter& out, const MegatronArg& value) {
  struct Visitor {
    PickleWriter& out;
    void operator()(std::monostate) const { out.none(); }
    void operator()(bool v) const { out.boolean(v); }
    void operator()(int64_t v) const { out.integer(v); }
    void operator()(double v) const { out.number(v); }
    void operator()(const std::string& v) const { out.text(v); }
    void operator()(const std::vector<int64_t>& v) const {
      out.begin_list();
      for (const int64_t item : v) out.integer(item);
      out.end_list();
    }
    void operator()(const PythonName& v) const { out.global(v.module, v.name); }
  };
  std::visit(Visitor{out}, value);
}

/// Writes the pickle of one rank's file and collects its storages.
class RankFileWriter {
 public:
  RankFileWriter(std::span<const TargetTensor> tensors, const MegatronWriteOptions& options)
      : tensors_(tensors), options_(options) {}

  void add(int tensor) {
    const std::string& name = tensors_[static_cast<size_t>(tensor)].name;
    const size_t dot = name.find('.');
    if (dot == std::string::npos || !name.starts_with("model")) {
      throw Error(ErrorCode::kInternal, "no path of a Megatron model", name);
    }
    Level* level = &models_.child(name.substr(0, dot));
    for (const std::string& key : keys_of(name.substr(dot + 1), options_.flat)) {
      level = &level->child(key);
    }
    level->tensor = tensor;
  }

  /// Virtual stages without tensors exist all the same.
  void add_model(const std::string& name) { models_.child(name); }

  FilePlan finish(const std::string& file_name) {
    pickle_.begin_dict();
    if (options_.source) {
      const PickleNode root = options_.source->reference.root();
      for (size_t i = 0; i < root.size(); ++i) {
        if (const auto key = root.key(i).find_text()) carry(std::string(*key), root.value(i));
      }
    }
    // What the source has no place for.
    for (const char* key : {"args", "checkpoint_version", "iteration", "model"}) {
      carry(key, std::nullopt);
    }
    pickle_.end_dict();
    return place_torch_zip(file_name, pickle_.finish(), storages_, "model_optim_rng");
  }

 private:
  void carry(const std::string& key, const std::optional<PickleNode>& value) {
    const bool is_model =
        key.starts_with("model") && key.find_first_not_of("0123456789", 5) == std::string::npos;
    if (!written_.insert(is_model ? "model" : key).second) return;
    if (is_model) {
      for (const Level& model : models_.children) {
        pickle_.text(model.key);
        write_level(model);
      }
    } else if (key == "args") {
      if (!value && options_.args.empty()) return;
      pickle_.text(key);
      write_args(value);
    } else if (key == "checkpoint_version") {
      if (options_.checkpoint_version == 0) return;
      pickle_.text(key);
      pickle_.number(options_.checkpoint_version);
    } else if (key == "iteration") {
      pickle_.text(key);
      pickle_.integer(options_.iteration);
    } else if (value && (is_scalar(*value) || (options_.keep_rng && is_rng(key)))) {
      pickle_.text(key);
      copy(*value);
    }
  }

  static bool is_scalar(const PickleNode& node) {
    switch (node.kind()) {
      case PickleKind::kNone:
      case PickleKind::kBool:
      case PickleKind::kInt:
      case PickleKind::kBigInt:
      case PickleKind::kFloat:
      case PickleKind::kText:
        return true;
      default:
        return false;
    }
  }

  static bool is_rng(const std::string& key) { return key.find("rng") != std::string::npos; }

  void write_level(const Level& level) {
    if (level.tensor >= 0) {
      const TargetTensor& tensor = tensors_[static_cast<size_t>(level.tensor)];
      const uint64_t bytes = checked_num_bytes(tensor.dtype, tensor.shape).value();
      pickle_.tensor(tensor.dtype, tensor.shape, std::to_string(storages_.size()));
      storages_.push_back({level.tensor, bytes, {}});
      return;
    }
    const bool is_state_dict = std::any_of(level.children.begin(), level.children.end(),
                                           [](const Level& child) { return child.tensor >= 0; });
    is_state_dict ? pickle_.begin_ordered_dict() : pickle_.begin_dict();
    for (const Level& child : level.children) {
      pickle_.text(child.key);
      write_level(child);
    }
    pickle_.end_dict();
  }

  void write_args(const std::optional<PickleNode>& source) {
    pickle_.begin_namespace();
    std::set<std::string> done;
    const auto override_of = [&](const std::string& name) -> const MegatronArg* {
      for (const auto& [key, value] : options_.args) {
        if (key == name) return &value;
      }
      return nullptr;
    };
    const auto state = source ? source->state() : std::nullopt;
    for (size_t i = 0; state && i < state->size(); ++i) {
      const auto key = state->key(i).find_text();
      if (!key || !done.insert(std::string(*key)).second) continue;
      pickle_.text(*key);
      if (const MegatronArg* value = override_of(std::string(*key))) {
        write_value(pickle_, *value);
      } else {
        copy(state->value(i));
      }
    }
    for (const auto& [key, value] : options_.args) {
      if (!done.insert(key).second) continue;
      pickle_.text(key);
      write_value(pickle_, value);
    }
    pickle_.end_namespace();
  }

  /// Tensors in what is carried along (random number states) are small: they become literals.
  void copy(const PickleNode& node) {
    constexpr uint64_t kMostBytes = uint64_t{64} << 20;
    const TorchFile& file = options_.source->reference;
    pickle_.copy(node, [&](PickleWriter& out, const PickleNode& tensor) {
      const std::string where = file.path().string();
      if (tensor.kind() != PickleKind::kTensor) {
        throw_invalid(where, "a bare storage cannot be carried along");
      }
      const StoredTensor stored = file.resolve(tensor, "carried tensor", 0);
      if (!stored.is_contiguous() || stored.num_bytes() > kMostBytes) {
        throw_invalid(where, "a tensor beside the model is too large to be carried along");
      }
      std::string bytes(stored.num_bytes(), '\0');
      File::open_read(file.path())
          .read_at(std::as_writable_bytes(std::span(bytes)), stored.offset_bytes);
      out.tensor(stored.dtype, stored.shape, std::to_string(storages_.size()));
      const uint64_t size = bytes.size();
      storages_.push_back({-1, size, std::move(bytes)});
    });
  }

  std::span<const TargetTensor> tensors_;
  const MegatronWriteOptions& options_;
  Level models_;
  PickleWriter pickle_;
  std::vector<TorchStorage> storages_;
  std::set<std::string> written_;
};

}  // namespace

std::vector<FilePlan> place_megatron(std::span<const TargetTensor> tensors,
                                     const MegatronWriteOptions& options) {
  std::map<std::pair<int, int>, std::vector<int>> by_rank;  // (stage, tensor rank)
  std::set<std::string> models;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TargetTensor& tensor = tensors[i];
    by_rank[{tensor.pp_rank, tensor.tp_rank}].push_back(static_cast<int>(i));
    models.insert(tensor.name.substr(0, tensor.name.find('.')));
  }
  std::vector<FilePlan> files;
  for (int stage = 0; stage < options.pp; ++stage) {
    for (int rank = 0; rank < options.tp; ++rank) {
      RankFileWriter writer(tensors, options);
      for (const std::string& model : models) writer.add_model(model);
      for (const int tensor : by_rank[{stage, rank}]) writer.add(tensor);
      files.push_back(writer.finish(options.step_name + "/" +
                                    megatron_rank_name(rank, stage, options.pp) +
                                    "/model_optim_rng.pt"));
    }
  }
  FilePlan tracker;
  tracker.name = "latest_checkpointed_iteration.txt";
  std::string text = options.step_name;
  if (text.starts_with("iter_")) {
    text.erase(0, std::min(text.find_first_not_of('0', 5), text.size() - 1));
  }
  tracker.size_bytes = text.size();
  tracker.literals.push_back({0, std::move(text)});
  files.push_back(std::move(tracker));
  return files;
}

}  // namespace llmctl::formats
