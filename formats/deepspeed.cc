#include "formats/deepspeed.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <system_error>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/directory.h"
#include "formats/megatron.h"
#include "formats/torch_file.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTracker = "latest";
constexpr std::string_view kStepPrefix = "global_step";
constexpr std::string_view kStatesSuffix = "_model_states.pt";
constexpr int kMaxRanks = 65536, kMaxLayers = 100000;

/// Decimal digits only, at most `most`; takes them off the front of `text`.
std::optional<int64_t> take_digits(std::string_view& text, int64_t most) {
  size_t length = 0;
  while (length < text.size() && text[length] >= '0' && text[length] <= '9') ++length;
  if (length == 0 || length > 18) return std::nullopt;
  int64_t value = 0;
  std::from_chars(text.data(), text.data() + length, value);
  text.remove_prefix(length);
  return value <= most ? std::optional(value) : std::nullopt;
}

bool take_text(std::string_view& text, std::string_view expected) {
  if (!text.starts_with(expected)) return false;
  text.remove_prefix(expected.size());
  return true;
}

std::optional<int64_t> parse_step(std::string_view name) {
  if (!take_text(name, kStepPrefix)) return std::nullopt;
  const auto step = take_digits(name, INT64_MAX);
  return name.empty() ? step : std::nullopt;
}

/// "mp_rank_00_model_states.pt": what the ranks of one step say besides their weights.
bool is_states_file(std::string_view name) {
  return take_text(name, "mp_rank_") && take_digits(name, kMaxRanks) && name == kStatesSuffix;
}

bool holds_layers(const fs::path& directory) {
  const std::vector<std::string> names = list_directory(directory);
  return std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return parse_deepspeed_layer_file(name).has_value();
  });
}

std::vector<std::string> steps_in(const fs::path& root) {
  std::vector<std::string> steps;
  for (const std::string& name : list_directory(root)) {
    if (parse_step(name) && leads_to_directory(root / name)) steps.push_back(name);
  }
  return steps;
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + printable(name);
  return text.empty() ? "none" : text;
}

fs::path find_step(const fs::path& path, std::vector<std::string>& notes) {
  if (holds_layers(path)) return path;
  const std::vector<std::string> steps = steps_in(path);
  if (!has_entry(path, kTracker)) {
    if (steps.size() == 1) {
      notes.push_back("'latest' is missing; " + steps.front() + " is the only step there is");
      return resolve_inside(path, steps.front());
    }
    throw_invalid(path.string(), "'latest' is missing, and the steps are " + join(steps),
                  "give the directory of one of them");
  }
  const fs::path tracker = resolve_inside(path, kTracker);
  std::string name = read_text_file(tracker, 4096);
  name.erase(name.find_last_not_of(" \t\r\n") + 1);
  if (std::find(steps.begin(), steps.end(), name) == steps.end()) {
    throw_invalid(
        tracker.string(),
        "it names '" + printable(name, 60) + "', which is not there; the steps are " + join(steps),
        "correct the file, or give the directory of one of them");
  }
  for (const std::string& step : steps) {
    if (parse_step(step) > parse_step(name)) {
      notes.push_back(step + " is newer than " + name + ", which 'latest' names; it is not read");
      break;
    }
  }
  return resolve_inside(path, name);
}

/// What a layer of the pipeline is, told by its tensors.
enum class Part { kEmbedding, kLayer, kFinalNorm };

const char* part_name(Part part) {
  switch (part) {
    case Part::kEmbedding:
      return "an embedding";
    case Part::kLayer:
      return "a transformer layer";
    case Part::kFinalNorm:
      return "a norm";
  }
  return "";
}

class Reader {
 public:
  explicit Reader(const fs::path& path) { checkpoint_.path = path; }

  Checkpoint read() {
    const fs::path step = find_step(checkpoint_.path, checkpoint_.notes);
    scan(step);
    for (const auto& [index, ranks] : files_) {
      for (int rank = 0; rank < num_ranks_; ++rank) {
        const auto it = ranks.find(rank);
        if (it == ranks.end()) refuse_gap(step, index, rank);
        read_file(index, rank, it->second);
      }
      finish_index(index);
    }
    if (!has_embedding_ || num_layers_ == 0 || !has_final_norm_) {
      throw_invalid(
          step.string(),
          std::string("no file holds ") + part_name(!has_embedding_    ? Part::kEmbedding
                                                    : num_layers_ == 0 ? Part::kLayer
                                                                       : Part::kFinalNorm),
          "a shard is missing; fetch it again");
    }
    checkpoint_.format = "deepspeed";
    checkpoint_.tensor_parallel_size = num_ranks_;
    checkpoint_.side_files = find_side_files(checkpoint_.path);
    describe(step);
    return std::move(checkpoint_);
  }

 private:
  void scan(const fs::path& step) {
    for (const std::string& name : list_directory(step)) {
      if (const auto layer = parse_deepspeed_layer_file(name)) {
        const auto [it, fresh] =
            files_[layer->index].insert({layer->rank, resolve_inside(step, name)});
        if (!fresh) {
          throw_invalid(step.string(), "'" + printable(name) + "' and '" +
                                           it->second.filename().string() + "' are the same file");
        }
        num_ranks_ = std::max(num_ranks_, layer->rank + 1);
      } else if (is_states_file(name)) {
        states_.push_back(resolve_inside(step, name));
      } else if (name.find("zero_pp_rank_") != std::string::npos ||
                 name.ends_with("_optim_states.pt")) {
        has_optimizer_ = true;
      }
    }
    if (files_.empty()) throw_invalid(step.string(), "no layer_*-model_*-model_states.pt in it");
  }

  [[noreturn]] void refuse_gap(const fs::path& step, int index, int rank) const {
    const fs::path& beside = files_.at(index).begin()->second;
    throw_invalid(step.string(),
                  "rank " + std::to_string(rank) + " of '" + beside.filename().string() +
                      "' is missing: other layers have " + std::to_string(num_ranks_) + " ranks",
                  "a shard is missing; fetch it again");
  }

  static Part part_of(const std::vector<StoredTensor>& tensors, const fs::path& path) {
    const auto has = [&](std::string_view name) {
      return std::any_of(tensors.begin(), tensors.end(),
                         [&](const StoredTensor& tensor) { return tensor.name == name; });
    };
    if (has("word_embeddings.weight")) return Part::kEmbedding;
    if (has("weight") && tensors.size() <= 2) return Part::kFinalNorm;
    if (has("mlp.dense_4h_to_h.weight")) return Part::kLayer;
    throw_invalid(path.string(), "it holds neither an embedding nor a transformer layer nor a norm",
                  "llmctl reads the GPT models of Megatron-DeepSpeed");
  }

  /// Megatron's name for a tensor of this file; empty for a second copy that is not needed.
  std::string megatron_name(Part part, const std::string& name) const {
    switch (part) {
      case Part::kEmbedding:
        if (!has_embedding_) return "language_model.embedding." + name;
        return name == "word_embeddings.weight" ? "word_embeddings_for_head.weight" : "";
      case Part::kLayer:
        return "language_model.encoder.layers." + std::to_string(num_layers_) + "." + name;
      case Part::kFinalNorm:
        return "language_model.encoder.final_layernorm." + name;
    }
    return "";
  }

  void read_file(int index, int rank, const fs::path& path) {
    const int file = static_cast<int>(checkpoint_.files.size());
    checkpoint_.files.push_back({path, File::open_read(path).size_bytes()});
    std::vector<StoredTensor> tensors;
    read_torch_file(path, file, tensors, checkpoint_.notes);
    const Part part = part_of(tensors, path);
    if (rank == 0) {
      part_ = part;
      check_place(index, path);
    } else if (part != part_) {
      throw_invalid(path.string(),
                    std::string("it holds ") + part_name(part) + ", rank 0 " + part_name(part_),
                    "the ranks are of different runs");
    }
    for (StoredTensor& tensor : tensors) {
      tensor.name = megatron_name(part, tensor.name);
      if (tensor.name.empty()) continue;
      tensor.tp_rank = rank;
      tensor.pp_rank = 0;
      checkpoint_.tensors.push_back(std::move(tensor));
    }
  }

  /// The pipeline's order: embedding, layers one after another, the norm, the tied embedding.
  void check_place(int index, const fs::path& path) const {
    const auto refuse = [&](const std::string& what) {
      throw_invalid(path.string(), std::string("it holds ") + part_name(part_) + " " + what,
                    "a shard is missing, or of another checkpoint; fetch it again");
    };
    if (part_ == Part::kEmbedding && has_embedding_ && !has_final_norm_) refuse("twice");
    if (part_ == Part::kLayer && !has_embedding_) refuse("before any embedding");
    if (part_ == Part::kLayer && has_final_norm_) refuse("behind the last norm");
    if (part_ == Part::kLayer && num_layers_ > 0 && index != last_index_ + 1) {
      refuse("numbered " + std::to_string(index) + ", and the one before is " +
             std::to_string(last_index_));
    }
    if (part_ == Part::kFinalNorm && has_final_norm_) refuse("twice");
  }

  void finish_index(int index) {
    last_index_ = index;
    if (part_ == Part::kLayer) ++num_layers_;
    if (part_ == Part::kFinalNorm) has_final_norm_ = true;
    if (part_ == Part::kEmbedding) {
      if (has_embedding_) {
        checkpoint_.dropped.emplace_back("layer_" + std::to_string(index),
                                         "second copy of the embedding's norm and positions");
      }
      has_embedding_ = true;
    }
  }

  void describe(const fs::path& step) {
    // Without its own file there are no args: what they say must then be given by hand.
    std::sort(states_.begin(), states_.end());
    const fs::path& first = states_.empty() ? files_.begin()->second.at(0) : states_.front();
    auto info =
        std::make_shared<MegatronInfo>(MegatronInfo{TorchFile::open(first), "", 0, 3.0, {}, {}});
    const PickleNode root = info->reference.root();
    if (states_.empty()) checkpoint_.notes.push_back("mp_rank_00_model_states.pt is missing");
    // The layout is younger than version 2.0, whose order of rows 3.0 kept.
    if (const auto node = root.find("checkpoint_version")) {
      info->checkpoint_version = node->find_float().value_or(3.0);
    }
    const auto named = parse_step(step.filename().string());
    info->iteration = named.value_or(0);
    if (const auto node = root.find("iteration")) {
      info->iteration = node->find_int().value_or(info->iteration);
    }
    for (const fs::path& other : states_) check_states(other, root, first);
    const std::string digits = std::to_string(info->iteration);
    info->step_name =
        "iter_" + std::string(digits.size() < 7 ? 7 - digits.size() : 0, '0') + digits;
    info->layers = {{num_layers_}};
    checkpoint_.megatron = std::move(info);
    if (has_optimizer_) checkpoint_.dropped.emplace_back("zero_pp_rank_*", "optimizer state");
  }

  static void check_states(const fs::path& path, const PickleNode& first_root,
                           const fs::path& first) {
    if (path == first) return;
    const TorchFile torch = TorchFile::open(path);
    const auto number = [](const PickleNode& root, const char* key) -> std::optional<int64_t> {
      const auto args = root.find("args");
      const auto node =
          args && std::string_view(key) != "iteration" ? args->find(key) : root.find(key);
      return node ? node->find_int() : std::nullopt;
    };
    for (const char* key : {"iteration", "num_layers", "hidden_size", "num_attention_heads"}) {
      const auto here = number(torch.root(), key), there = number(first_root, key);
      if (here == there) continue;
      const auto text = [](const std::optional<int64_t>& n) {
        return n ? std::to_string(*n) : std::string("none");
      };
      throw_invalid(path.string(),
                    std::string(key) + " is " + text(here) + ", but " + text(there) + " in " +
                        first.filename().string(),
                    "the ranks are of different runs");
    }
  }

  Checkpoint checkpoint_;
  std::map<int, std::map<int, fs::path>> files_;  // by pipeline index, then rank
  std::vector<fs::path> states_;
  bool has_optimizer_ = false;
  int num_ranks_ = 0;
  // Of the indices read so far.
  Part part_ = Part::kEmbedding;
  int last_index_ = -1;
  int64_t num_layers_ = 0;
  bool has_embedding_ = false, has_final_norm_ = false;
};

}  // namespace

std::optional<DeepSpeedLayerFile> parse_deepspeed_layer_file(std::string_view name) {
  if (!take_text(name, "layer_")) return std::nullopt;
  const auto index = take_digits(name, kMaxLayers);
  if (!index || !take_text(name, "-model_")) return std::nullopt;
  const auto rank = take_digits(name, kMaxRanks - 1);
  if (!rank || name != "-model_states.pt") return std::nullopt;
  return DeepSpeedLayerFile{static_cast<int>(*index), static_cast<int>(*rank)};
}

bool detect_deepspeed(const fs::path& path) {
  std::error_code ec;
  if (!fs::is_directory(path, ec)) return false;
  try {
    if (holds_layers(path)) return true;
    const std::vector<std::string> steps = steps_in(path);
    return std::any_of(steps.begin(), steps.end(),
                       [&](const std::string& step) { return holds_layers(path / step); });
  } catch (const Error&) {
    return false;
  }
}

Checkpoint read_deepspeed(const fs::path& path) { return Reader(path).read(); }

}  // namespace llmctl::formats
