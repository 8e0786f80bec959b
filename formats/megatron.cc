#include "formats/megatron.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <set>
#include <system_error>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/directory.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTracker = "latest_checkpointed_iteration.txt";
constexpr std::string_view kRankPrefix = "mp_rank_";
constexpr int kMaxRanks = 65536;
constexpr int kMaxDepth = 8;  // of dicts around a tensor

/// Decimal digits only, at most `most`.
std::optional<int64_t> parse_digits(std::string_view text, int64_t most) {
  if (text.empty() || text.size() > 18) return std::nullopt;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
  }
  int64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value <= most ? std::optional(value) : std::nullopt;
}

std::optional<int64_t> parse_step(std::string_view name) {
  if (!name.starts_with("iter_")) return std::nullopt;
  return parse_digits(name.substr(5), INT64_MAX);
}

bool is_step_name(std::string_view name) {
  return name == "release" || parse_step(name).has_value();
}

bool holds_ranks(const fs::path& directory) {
  const std::vector<std::string> names = list_directory(directory);
  return std::any_of(names.begin(), names.end(), [&](const std::string& name) {
    return parse_megatron_rank(name) && leads_to_directory(directory / name);
  });
}

std::vector<std::string> steps_in(const fs::path& root) {
  std::vector<std::string> steps;
  for (const std::string& name : list_directory(root)) {
    if (is_step_name(name) && leads_to_directory(root / name)) steps.push_back(name);
  }
  return steps;
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + printable(name);
  return text.empty() ? "none" : text;
}

std::string trim(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

/// The directory of one iteration, and the root around it.
struct Step {
  fs::path root, directory;
  std::string name;
};

Step find_step(const fs::path& path, std::vector<std::string>& notes) {
  if (holds_ranks(path)) {
    std::error_code ec;
    fs::path directory = fs::absolute(path, ec).lexically_normal();
    if (!directory.has_filename()) directory = directory.parent_path();
    const std::string name = directory.filename().string();
    return {path, path, is_step_name(name) ? name : "release"};
  }
  const std::vector<std::string> steps = steps_in(path);
  const auto open = [&](const std::string& name) {
    return Step{path, resolve_inside(path, name), name};
  };
  if (!has_entry(path, kTracker)) {
    if (steps.size() == 1) {
      notes.push_back(std::string(kTracker) + " is missing; " + steps.front() +
                      " is the only iteration there is");
      return open(steps.front());
    }
    throw_invalid(path.string(),
                  std::string(kTracker) + " is missing, and the iterations are " + join(steps),
                  "give the directory of one of them");
  }
  const fs::path tracker = resolve_inside(path, kTracker);
  const std::string text = trim(read_text_file(tracker, 4096));
  std::string name;
  if (text == "release") {
    name = text;
  } else if (const auto iteration = parse_digits(text, INT64_MAX)) {
    for (const std::string& step : steps) {
      if (parse_step(step) == *iteration) name = step;
    }
    if (name.empty()) {
      const std::string digits = std::to_string(*iteration);
      name = "iter_" + std::string(digits.size() < 7 ? 7 - digits.size() : 0, '0') + digits;
    }
    for (const std::string& step : steps) {
      if (parse_step(step).value_or(-1) > *iteration) {
        notes.push_back(step + " is newer than iteration " + text + ", which " + kTracker +
                        " names; it is not read");
        break;
      }
    }
  } else {
    throw_invalid(tracker.string(),
                  "'" + printable(text, 60) + "' is neither an iteration nor 'release'",
                  "write the number of one of: " + join(steps));
  }
  if (std::find(steps.begin(), steps.end(), name) == steps.end()) {
    throw_invalid(tracker.string(),
                  "it names " + name + ", which is not there; the iterations are " + join(steps),
                  "correct the file, or give the directory of one of them");
  }
  return open(name);
}

struct RankFile {
  int tensor = 0, stage = 0;
  fs::path path;
};

/// Every rank's model file, stage by stage, complete.
class RankScan {
 public:
  RankScan(const fs::path& directory, std::vector<std::pair<std::string, std::string>>& dropped)
      : directory_(directory), dropped_(dropped) {}

  std::vector<RankFile> run() {
    for (const std::string& name : list_directory(directory_)) add(name);
    if (found_.empty()) {
      throw_invalid(directory_.string(), "no mp_rank_* directory in it holds a model");
    }
    num_tensor_ = num_stages_ = 1;
    for (const auto& [key, file] : found_) {
      num_stages_ = std::max(num_stages_, key.first + 1);
      num_tensor_ = std::max(num_tensor_, key.second + 1);
    }
    std::vector<RankFile> files;
    for (int stage = 0; stage < num_stages_; ++stage) {
      for (int tensor = 0; tensor < num_tensor_; ++tensor) {
        const auto it = found_.find({stage, tensor});
        if (it == found_.end()) refuse_gap(tensor, stage);
        files.push_back(it->second);
      }
    }
    return files;
  }

  int num_tensor() const { return num_tensor_; }
  int num_stages() const { return num_stages_; }

 private:
  void add(const std::string& name) {
    const auto rank = parse_megatron_rank(name);
    if (!rank) {
      if (name.starts_with(kRankPrefix)) {
        throw_invalid(
            (directory_ / name).string(), "not the name of a rank",
            "expected mp_rank_TT or mp_rank_TT_PPP, numbers below " + std::to_string(kMaxRanks));
      }
      return;
    }
    const fs::path folder = resolve_inside(directory_, name);
    if (!leads_to_directory(folder)) return;
    std::string file;
    for (const char* candidate : {"model_optim_rng.pt", "model_rng.pt"}) {
      if (file.empty() && has_entry(folder, candidate)) file = candidate;
    }
    if (has_entry(folder, "distrib_optim.pt") && rank->tensor == 0 && rank->pipeline <= 0) {
      dropped_.emplace_back("distrib_optim.pt", "optimizer state");
    }
    if (file.empty()) {
      if (has_entry(folder, "optim.pt") || has_entry(folder, "distrib_optim.pt")) return;
      throw_invalid(folder.string(), "holds neither model_optim_rng.pt nor model_rng.pt",
                    "a shard is missing; fetch it again");
    }
    if (rank->other >= 0) {
      throw_invalid(folder.string(),
                    "an expert-parallel rank: llmctl does not read mixtures of "
                    "experts");
    }
    if (has_stage_.has_value() && *has_stage_ != (rank->pipeline >= 0)) {
      throw_invalid(directory_.string(),
                    "holds ranks with and without a pipeline stage in their names",
                    "they are of different checkpoints: take one kind away");
    }
    has_stage_ = rank->pipeline >= 0;
    RankFile entry{rank->tensor, std::max(0, rank->pipeline), resolve_inside(folder, file)};
    const auto [it, fresh] = found_.insert({{entry.stage, entry.tensor}, entry});
    if (!fresh) {
      throw_invalid(directory_.string(), "'" + name + "' and '" +
                                             it->second.path.parent_path().filename().string() +
                                             "' are the same rank");
    }
  }

  [[noreturn]] void refuse_gap(int tensor, int stage) const {
    throw_invalid(directory_.string(),
                  megatron_rank_name(tensor, stage, *has_stage_ ? 2 : 1) +
                      " is missing: " + std::to_string(found_.size()) + " ranks are there, tp " +
                      std::to_string(num_tensor_) + " x pp " + std::to_string(num_stages_) +
                      " needs " + std::to_string(int64_t{num_tensor_} * num_stages_),
                  "a shard is missing; fetch it again");
  }

  fs::path directory_;
  std::vector<std::pair<std::string, std::string>>& dropped_;
  std::map<std::pair<int, int>, RankFile> found_;  // by (stage, tensor rank)
  std::optional<bool> has_stage_;
  int num_tensor_ = 0, num_stages_ = 0;
};

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

/// A tensor of one model dict under its dotted path.
struct NamedTensor {
  std::string name;
  StoredTensor tensor;
};

/// Lists the tensors of one `model` dict.
class ModelWalk {
 public:
  ModelWalk(const TorchFile& torch, int file, bool& has_extra_state)
      : torch_(torch), file_(file), has_extra_state_(has_extra_state) {
    visits_left_ = 4 * uint64_t{torch.pickle().num_nodes()} + 1000;
  }

  std::vector<NamedTensor> run(const PickleNode& model) {
    walk(model, "", 0);
    return std::move(tensors_);
  }

 private:
  void walk(const PickleNode& dict, const std::string& prefix, int depth) {
    const std::string where = torch_.path().string();
    if (depth > kMaxDepth) {
      throw_invalid(where,
                    "the model is nested deeper than " + std::to_string(kMaxDepth) + " levels");
    }
    for (size_t i = 0; i < dict.size(); ++i) {
      if (visits_left_-- == 0) throw_invalid(where, "its dicts share too many parts");
      const auto key = dict.key(i).find_text();
      if (!key || key->size() > 4096) {
        throw_invalid(where, "a key of the model is a " + dict.key(i).describe() + ", not a name");
      }
      const std::string name =
          prefix.empty() ? std::string(*key) : prefix + "." + std::string(*key);
      if (name.size() > 8192) throw_invalid(where, "a name is too long");
      const PickleNode value = dict.value(i);
      if (ends_with(name, "_extra_state")) {
        has_extra_state_ = true;
      } else if (value.kind() == PickleKind::kTensor) {
        tensors_.push_back({name, torch_.resolve(value, name, file_)});
      } else if (value.kind() == PickleKind::kDict) {
        walk(value, name, depth + 1);
      } else if (value.kind() == PickleKind::kObject || value.kind() == PickleKind::kStorage) {
        throw_invalid(where,
                      "'" + printable(name) + "' is a " + value.describe() + ", not a tensor");
      }
    }
  }

  const TorchFile& torch_;
  int file_;
  bool& has_extra_state_;
  uint64_t visits_left_;
  std::vector<NamedTensor> tensors_;
};

/// Where the layer number of a name stands.
struct LayerPart {
  size_t begin = 0, end = 0;
  int64_t number = 0;
};

std::optional<LayerPart> find_layer(const std::string& name) {
  const size_t at = name.find("layers.");
  if (at == std::string::npos || (at > 0 && name[at - 1] != '.')) return std::nullopt;
  LayerPart part;
  part.begin = at + 7;
  part.end = std::min(name.find('.', part.begin), name.size());
  const std::string_view digits = std::string_view(name).substr(part.begin, part.end - part.begin);
  const auto number = parse_digits(digits, 100000);
  if (!number || (digits.size() > 1 && digits.front() == '0')) return std::nullopt;
  part.number = *number;
  return part;
}

/// Learns from a name how the checkpoint spells.
void learn_dialect(const std::string& name, MegatronDialect& dialect) {
  const auto has = [&](std::string_view part) { return name.find(part) != std::string::npos; };
  if (name.starts_with("decoder.") || name.starts_with("embedding.")) dialect.core = true;
  if (has("linear_qkv.layer_norm_")) dialect.fused_norms = true;
  if (name.starts_with("language_model.transformer.")) dialect.encoder = "transformer";
  if (has(".attention.")) dialect.attention = "attention";
  if (has(".input_norm.") || has(".final_norm.")) dialect.norm = "norm";
}

/// What every rank of one run says alike.
struct Identity {
  std::optional<int64_t> iteration;
  std::optional<double> version;
  std::map<std::string, std::string> args;

  static Identity of(const PickleNode& root) {
    Identity identity;
    if (const auto node = root.find("iteration")) identity.iteration = node->find_int();
    if (const auto node = root.find("checkpoint_version")) identity.version = node->find_float();
    if (const auto args = root.find("args")) {
      for (const char* key :
           {"num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size", "kv_channels",
            "padded_vocab_size", "tensor_model_parallel_size", "model_parallel_size",
            "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size", "iteration"}) {
        if (const auto node = args->find(key)) {
          if (const auto value = node->find_int()) identity.args[key] = std::to_string(*value);
        }
      }
    }
    return identity;
  }
};

std::string text_of(const std::optional<int64_t>& value) {
  return value ? std::to_string(*value) : "none";
}

class Reader {
 public:
  explicit Reader(const fs::path& path) { checkpoint_.path = path; }

  Checkpoint read() {
    const Step step = find_step(checkpoint_.path, checkpoint_.notes);
    RankScan scan(step.directory, checkpoint_.dropped);
    const std::vector<RankFile> files = scan.run();
    checkpoint_.format = "megatron";
    checkpoint_.tensor_parallel_size = scan.num_tensor();
    checkpoint_.pipeline_parallel_size = scan.num_stages();
    auto info = std::make_shared<MegatronInfo>(
        MegatronInfo{TorchFile::open(files.front().path), step.name, 0, 0, {}, {}});
    check_top_level(info->reference);
    identity_ = Identity::of(info->reference.root());
    for (const RankFile& file : files) {
      if (&file == &files.front()) {
        read_rank(info->reference, file);
      } else {
        const TorchFile torch = TorchFile::open(file.path);
        check_top_level(torch);
        check_identity(torch, files.front());
        read_rank(torch, file);
      }
    }
    finish_layers(*info, scan.num_stages());
    info->dialect = dialect_;
    info->checkpoint_version = identity_.version.value_or(0);
    info->iteration = identity_.iteration.value_or(parse_step(step.name).value_or(0));
    const auto named = parse_step(step.name);
    if (named && identity_.iteration && *named != *identity_.iteration) {
      checkpoint_.notes.push_back("the directory is " + step.name +
                                  ", the files in it are of "
                                  "iteration " +
                                  std::to_string(*identity_.iteration));
    }
    list_dropped(info->reference.root());
    if (has_extra_state_) checkpoint_.dropped.emplace_back("_extra_state", "FP8 scaling state");
    checkpoint_.side_files = find_side_files(step.root);
    checkpoint_.megatron = std::move(info);
    return std::move(checkpoint_);
  }

 private:
  static void check_top_level(const TorchFile& torch) {
    const PickleNode root = torch.root();
    if (root.kind() != PickleKind::kDict || (!root.find("model") && !root.find("model0"))) {
      throw_invalid(torch.path().string(),
                    "its top level is a " + root.describe() + " without 'model'",
                    "this is not a file that Megatron's save_checkpoint writes");
    }
  }

  void check_identity(const TorchFile& torch, const RankFile& first) const {
    const Identity other = Identity::of(torch.root());
    const auto refuse = [&](const std::string& what, const std::string& here,
                            const std::string& there) {
      throw_invalid(torch.path().string(),
                    what + " is " + here + ", but " + there + " in " +
                        first.path.parent_path().filename().string(),
                    "the ranks are of different runs");
    };
    if (other.iteration != identity_.iteration) {
      refuse("iteration", text_of(other.iteration), text_of(identity_.iteration));
    }
    if (other.version != identity_.version) {
      refuse("checkpoint_version", other.version ? std::to_string(*other.version) : "none",
             identity_.version ? std::to_string(*identity_.version) : "none");
    }
    for (const auto& [key, value] : identity_.args) {
      const auto it = other.args.find(key);
      if (it != other.args.end() && it->second != value) {
        refuse("args." + key, it->second, value);
      }
    }
  }

  void read_rank(const TorchFile& torch, const RankFile& file) {
    const int index = static_cast<int>(checkpoint_.files.size());
    checkpoint_.files.push_back({file.path, File::open_read(file.path).size_bytes()});
    const PickleNode root = torch.root();
    std::vector<PickleNode> chunks;
    if (const auto model = root.find("model")) {
      chunks.push_back(*model);
    } else {
      for (int c = 0; c < 1000; ++c) {
        const auto chunk = root.find("model" + std::to_string(c));
        if (!chunk) break;
        chunks.push_back(*chunk);
      }
    }
    if (index == 0) num_chunks_ = chunks.size();
    if (chunks.size() != num_chunks_) {
      throw_invalid(torch.path().string(), "holds " + std::to_string(chunks.size()) +
                                               " virtual stages, other ranks " +
                                               std::to_string(num_chunks_));
    }
    for (size_t c = 0; c < chunks.size(); ++c) {
      if (chunks[c].kind() != PickleKind::kDict) {
        throw_invalid(torch.path().string(),
                      "its model is a " + chunks[c].describe() + ", not a dict of tensors",
                      "save the state_dict()");
      }
      std::set<int64_t> layers;
      for (NamedTensor& named : ModelWalk(torch, index, has_extra_state_).run(chunks[c])) {
        learn_dialect(named.name, dialect_);
        named.tensor.name = named.name;
        named.tensor.tp_rank = file.tensor;
        named.tensor.pp_rank = file.stage;
        if (const auto layer = find_layer(named.name)) layers.insert(layer->number);
        check_end(torch, file, c, named.name);
        checkpoint_.tensors.push_back(std::move(named.tensor));
        chunk_of_.push_back(static_cast<int>(c));
      }
      count_layers(torch, file, c, layers);
    }
  }

  /// The embedding begins the first stage and the last norm ends the last one, so stages that have
  /// changed places show.
  void check_end(const TorchFile& torch, const RankFile& file, size_t chunk,
                 const std::string& name) const {
    const int last = checkpoint_.pipeline_parallel_size - 1;
    const bool is_first = file.stage == 0 && chunk == 0;
    const bool is_last = file.stage == last && chunk + 1 == num_chunks_;
    const bool begins = name.find("embedding.word_embeddings") != std::string::npos;
    const bool ends = name.find("final_layernorm.") != std::string::npos ||
                      name.find("word_embeddings_for_head") != std::string::npos;
    if (!(begins && !is_first) && !(ends && !is_last)) return;
    throw_invalid(torch.path().string(),
                  "holds '" + printable(name, 100) + "', which belongs to the " +
                      (begins ? "first" : "last") + " pipeline stage, and is stage " +
                      std::to_string(file.stage) + " of 0 to " + std::to_string(last),
                  "stages have changed places, or are of another checkpoint; fetch them again");
  }

  void count_layers(const TorchFile& torch, const RankFile& file, size_t chunk,
                    const std::set<int64_t>& layers) {
    const auto count = static_cast<int64_t>(layers.size());
    if (!layers.empty() && *layers.rbegin() != count - 1) {
      int64_t missing = 0;
      while (layers.count(missing) != 0) ++missing;
      throw_invalid(torch.path().string(), "layer " + std::to_string(missing) +
                                               " is missing (local number; " +
                                               std::to_string(count) + " layers are there, up to " +
                                               std::to_string(*layers.rbegin()) + ")");
    }
    const auto [it, fresh] = layers_.insert({{static_cast<int>(chunk), file.stage}, count});
    if (!fresh && it->second != count) {
      throw_invalid(torch.path().string(),
                    "holds " + std::to_string(count) + " layers, other ranks of the stage " +
                        std::to_string(it->second),
                    "the ranks are of different runs");
    }
  }

  /// Local layer numbers become global ones: stages in order, virtual stage by virtual stage.
  void finish_layers(MegatronInfo& info, int num_stages) {
    std::map<std::pair<int, int>, int64_t> offsets;
    int64_t total = 0;
    for (size_t c = 0; c < num_chunks_; ++c) {
      info.layers.emplace_back();
      for (int stage = 0; stage < num_stages; ++stage) {
        const std::pair<int, int> key{static_cast<int>(c), stage};
        offsets[key] = total;
        total += layers_[key];
        info.layers.back().push_back(layers_[key]);
      }
    }
    for (size_t i = 0; i < checkpoint_.tensors.size(); ++i) {
      StoredTensor& tensor = checkpoint_.tensors[i];
      const auto layer = find_layer(tensor.name);
      if (!layer) continue;
      const int64_t global = layer->number + offsets[{chunk_of_[i], tensor.pp_rank}];
      tensor.name.replace(layer->begin, layer->end - layer->begin, std::to_string(global));
    }
  }

  void list_dropped(const PickleNode& root) {
    for (size_t i = 0; i < root.size(); ++i) {
      const auto key = root.key(i).find_text();
      if (!key) continue;
      const std::string name(*key);
      if (name.find("optimizer") != std::string::npos || name == "fp32_from_fp16_params") {
        checkpoint_.dropped.emplace_back(name, "optimizer state");
      } else if (name.find("scheduler") != std::string::npos) {
        checkpoint_.dropped.emplace_back(name, "learning-rate schedule");
      } else if (name.find("rng") != std::string::npos) {
        checkpoint_.dropped.emplace_back(name, "random number state");
      } else if (name == "rerun_state_machine") {
        checkpoint_.dropped.emplace_back(name, "state of the training run");
      }
    }
  }

  Checkpoint checkpoint_;
  Identity identity_;
  MegatronDialect dialect_;
  std::vector<int> chunk_of_;                      // of each tensor
  std::map<std::pair<int, int>, int64_t> layers_;  // of (virtual stage, stage)
  size_t num_chunks_ = 0;
  bool has_extra_state_ = false;
};

void replace(std::string& text, std::string_view from, std::string_view to) {
  const size_t at = text.find(from);
  if (at != std::string::npos) text.replace(at, from.size(), to);
}

}  // namespace

std::string MegatronDialect::spell(std::string_view name) const {
  std::string text(name);
  if (!core) {
    if (encoder != "encoder") replace(text, ".encoder.", "." + encoder + ".");
    if (attention != "self_attention") replace(text, ".self_attention.", "." + attention + ".");
    if (norm != "layernorm") {
      for (const char* part :
           {".input_layernorm.", ".post_attention_layernorm.", ".final_layernorm."}) {
        std::string spelled = part;
        replace(spelled, "layernorm", norm);
        replace(text, part, spelled);
      }
    }
    return text;
  }
  replace(text, "word_embeddings_for_head.", "output_layer.");
  replace(text, "language_model.", "");
  replace(text, "encoder.", "decoder.");
  replace(text, ".query_key_value.", ".linear_qkv.");
  replace(text, ".self_attention.dense.", ".self_attention.linear_proj.");
  replace(text, ".mlp.dense_h_to_4h.", ".mlp.linear_fc1.");
  replace(text, ".mlp.dense_4h_to_h.", ".mlp.linear_fc2.");
  if (fused_norms) {
    replace(text, ".input_layernorm.", ".self_attention.linear_qkv.layer_norm_");
    replace(text, ".post_attention_layernorm.", ".mlp.linear_fc1.layer_norm_");
  } else {
    replace(text, ".post_attention_layernorm.", ".pre_mlp_layernorm.");
  }
  return text;
}

std::optional<MegatronRank> parse_megatron_rank(std::string_view name) {
  if (!name.starts_with(kRankPrefix)) return std::nullopt;
  name.remove_prefix(kRankPrefix.size());
  MegatronRank rank;
  for (int* number : {&rank.tensor, &rank.pipeline, &rank.other}) {
    const size_t end = std::min(name.find('_'), name.size());
    const auto value = parse_digits(name.substr(0, end), kMaxRanks - 1);
    if (!value) return std::nullopt;
    *number = static_cast<int>(*value);
    if (end == name.size()) return rank;
    name.remove_prefix(end + 1);
  }
  return std::nullopt;
}

std::string megatron_rank_name(int tensor, int stage, int stages) {
  const auto pad = [](int number, size_t width) {
    const std::string digits = std::to_string(number);
    return digits.size() >= width ? digits : std::string(width - digits.size(), '0') + digits;
  };
  std::string name(kRankPrefix);
  name += pad(tensor, 2);
  if (stages > 1) name += "_" + pad(stage, 3);
  return name;
}

bool detect_megatron(const fs::path& path) {
  std::error_code ec;
  if (!fs::is_directory(path, ec)) return false;
  try {
    if (has_entry(path, kTracker) || holds_ranks(path)) return true;
    const std::vector<std::string> steps = steps_in(path);
    return std::any_of(steps.begin(), steps.end(),
                       [&](const std::string& step) { return holds_ranks(path / step); });
  } catch (const Error&) {
    return false;
  }
}

Checkpoint read_megatron(const fs::path& path) { return Reader(path).read(); }

}  // namespace llmctl::formats
