#include "reshard/convert.h"

#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "formats/core/error.h"
#include "formats/faster_transformer.h"
#include "formats/json.h"
#include "formats/registry.h"
#include "reshard/faster_transformer.h"

namespace llmctl::reshard {

namespace fs = std::filesystem;
using formats::FilePlan;
using formats::StoredTensor;

namespace {

FilePlan text_file(const std::string& name, std::string text) {
  FilePlan plan;
  plan.name = name;
  plan.size_bytes = text.size();
  plan.literals.push_back({0, std::move(text)});
  return plan;
}

/// The dtype that most bytes of the model are stored in, if it is one that can be written.
DType main_dtype(const Model& model) {
  std::map<DType, uint64_t> bytes;
  for (const std::string& key : model.keys()) {
    for (const SourcePiece& piece : model.pieces(key)) {
      const StoredTensor& tensor = model.checkpoint().tensors[static_cast<size_t>(piece.tensor)];
      bytes[tensor.dtype] += tensor.num_bytes();
    }
  }
  DType best = DType::F32;
  uint64_t most = 0;
  for (const auto& [dtype, count] : bytes) {
    if (!dtype_info(dtype).flag.empty() && count > most) {
      best = dtype;
      most = count;
    }
  }
  return best;
}

std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace

struct Conversion::State {
  ConvertOptions options;
  Model model;
  const formats::Format* format = nullptr;
  fs::path target;
  std::vector<TensorRule> rules;
  std::vector<std::string> rule_names;  // backing for renamed rules
  Plan plan;
  std::vector<FilePlan> files;
  std::vector<fs::path> side_files;
  std::vector<std::string> notes;

  void prepare() {
    format = formats::find_format(options.format);
    if (format == nullptr || format->place == nullptr) {
      throw_usage("--to " + options.format, "llmctl does not write this format", "use hf or ft");
    }
    if (options.destination.empty()) {
      throw_usage("destination", "the path is empty", "name a directory");
    }
    if (options.tp < 1 || options.tp > 65536) {
      throw_usage("--tp " + std::to_string(options.tp), "must be at least 1");
    }
    model = open_model(options.source, {options.family_file});
    notes = model.notes();
    const bool ft = options.format == "ft";
    if (!ft && options.tp != 1) {
      throw_usage("--tp " + std::to_string(options.tp),
                  "Hugging Face files are not split by tensor-parallel size",
                  "leave --tp out, or give --to ft");
    }
    target = options.destination;
    while (!target.has_filename() && target.has_parent_path()) target = target.parent_path();
    if (ft && target.filename() != std::to_string(options.tp) + "-gpu") {
      // An N-gpu directory inside an M-gpu one would be read as neither.
      if (formats::parse_ft_directory_name(target.filename().string())) {
        throw_usage(target.string(),
                    "the name does not agree with --tp " + std::to_string(options.tp),
                    "name the directory above it");
      }
      target /= std::to_string(options.tp) + "-gpu";
    }
    std::error_code ec;
    if (fs::exists(fs::symlink_status(target, ec)) && !options.overwrite) {
      throw_usage(target.string(), "already exists",
                  "give --overwrite to replace it, or name another destination");
    }
    if (ft) {
      prepare_ft();
    } else {
      prepare_hf();
    }
    check_resources(job());
  }

  /// The source's matrices are read once, so replicas of tensors on several ranks are checked
  /// apart.
  void plan_with(const PlanOptions& plan_options) {
    plan = make_plan(model, rules, plan_options);
    std::vector<formats::TargetTensor> targets;
    for (const PlannedTensor& tensor : plan.tensors) targets.push_back(tensor.target);
    files = format->place(targets, {options.max_shard_bytes});
    for (const std::string& key : plan.left_out) {
      notes.push_back("'" + key +
                      "' is left out: the target format has no place for it, and only "
                      "padding positions read it");
    }
  }

  void prepare_ft() {
    const ModelConfig& config = model.config();
    rules = ft_rules(config);
    const DType dtype = options.dtype.value_or(main_dtype(model));
    PlanOptions plan_options;
    plan_options.tp = options.tp;
    plan_options.dtype = [dtype](const Shape&, DType) { return dtype; };
    plan_options.target_name = "FasterTransformer";
    plan_options.multiply_out = true;
    plan_with(plan_options);
    FtConfigOptions ft;
    ft.tp = options.tp;
    ft.dtype = dtype;
    ft.exact = options.ft_exact;
    ft.model_name = options.model_name.empty() ? default_model_name() : options.model_name;
    files.push_back(text_file("config.ini", write_ft_config(config, ft)));
    if (!options.ft_exact) side_files = model.checkpoint().side_files;
    if (config.gated_mlp &&
        (config.num_key_value_heads != config.num_attention_heads || config.qkv_bias ||
         config.rope_theta != 10000.0 || config.rope_scaling.kind != "default")) {
      notes.push_back(
          "FasterTransformer's own LLaMA loader knows neither grouped key-value heads nor biases "
          "nor other rotary bases: this model needs a reader that takes them from config.ini");
    }
  }

  std::string default_model_name() const {
    if (options.ft_exact) return options.source.string();
    const auto text = model.checkpoint().texts.find("config.json");
    if (text != model.checkpoint().texts.end()) {
      const auto json = formats::parse_json(text->second, "config.json");
      if (json.contains("_name_or_path") && json["_name_or_path"].is_string()) {
        const std::string name = json["_name_or_path"].get<std::string>();
        if (!name.empty() && name.find_first_of("\n\r%") == std::string::npos) return name;
      }
    }
    fs::path path = options.source;
    while (!path.has_filename() && path.has_parent_path()) path = path.parent_path();
    return path.filename().string();
  }

  void prepare_hf() {
    const Family& family = model.family();
    // A table may know a tensor by two names; the first is the one to write.
    std::set<std::string_view> layouts;
    for (const TensorRule& rule : family.tensors) {
      if (layouts.insert(rule.layout).second) rules.push_back(rule);
    }
    const bool from_hf = model.checkpoint().format == "hf";
    if (from_hf && !family.prefix.empty() && lacks_prefix(family.prefix)) {
      rule_names.reserve(rules.size());
      for (TensorRule& rule : rules) {
        if (rule.name.starts_with(family.prefix)) {
          rule.name = rule_names.emplace_back(rule.name.substr(family.prefix.size()));
        }
      }
    }
    PlanOptions plan_options;
    const std::optional<DType> dtype = options.dtype;
    plan_options.dtype = [dtype](const Shape&, DType source) { return dtype.value_or(source); };
    plan_options.target_name = "Hugging Face";
    plan_with(plan_options);
    files.push_back(text_file("config.json", hf_config()));
    side_files = model.checkpoint().side_files;
  }

  bool lacks_prefix(std::string_view prefix) const {
    const auto& tensors = model.checkpoint().tensors;
    return std::none_of(tensors.begin(), tensors.end(), [&](const StoredTensor& tensor) {
      return tensor.name.starts_with(prefix);
    });
  }

  std::string hf_config() const {
    const DType dtype = options.dtype.value_or(main_dtype(model));
    ModelConfig config = model.config();
    config.dtype = dtype;
    if (model.checkpoint().format != "hf")
      return write_config(model.family(), config).dump(2) + "\n";
    const std::string& text = model.checkpoint().texts.at("config.json");
    auto json = formats::parse_json(text, "config.json");
    const std::string torch_name(dtype_info(dtype).torch);
    bool changed = false;
    if (options.dtype) {
      const char* key =
          json.contains("dtype") && !json.contains("torch_dtype") ? "dtype" : "torch_dtype";
      changed = !json.contains(key) || json[key] != torch_name;
      json[key] = torch_name;
    }
    // A head that was found to differ from the embedding must not be tied by the next reader.
    const bool tied = json.contains("tie_word_embeddings")
                          ? json["tie_word_embeddings"] == true
                          : read_config(model.family(), json, "config.json").tie_word_embeddings;
    if (tied != config.tie_word_embeddings) {
      json["tie_word_embeddings"] = config.tie_word_embeddings;
      changed = true;
    }
    return changed ? json.dump(2) + "\n" : text;
  }

  uint64_t bytes_to_write() const {
    uint64_t bytes = 0;
    for (const FilePlan& file : files) bytes += file.size_bytes;
    return bytes;
  }

  OutputJob job() const {
    OutputJob job;
    job.plan = &plan;
    job.files = files;
    job.side_files = side_files;
    job.target = target;
    job.overwrite = options.overwrite;
    job.jobs = options.jobs;
    job.max_memory = options.max_memory;
    job.overflow = overflow();
    job.overflow_is_error = options.on_overflow == OnOverflow::kError;
    job.verify = options.verify;
    job.family_file = options.family_file;
    job.with_manifest = !options.ft_exact;
    job.format = options.format;
    job.geometry.tensor_parallel_size = options.tp;
    return job;
  }

  kernels::Overflow overflow() const {
    return options.on_overflow == OnOverflow::kClamp ? kernels::Overflow::kClamp
                                                     : kernels::Overflow::kInf;
  }
};

Conversion::Conversion(ConvertOptions options) : state_(std::make_unique<State>()) {
  state_->options = std::move(options);
  state_->prepare();
}

Conversion::~Conversion() = default;

const Model& Conversion::model() const { return state_->model; }
const Plan& Conversion::plan() const { return state_->plan; }
const fs::path& Conversion::target_path() const { return state_->target; }
uint64_t Conversion::bytes_to_write() const { return state_->bytes_to_write(); }
const std::vector<std::string>& Conversion::notes() const { return state_->notes; }

std::string Conversion::describe() const {
  std::ostringstream out;
  const auto& stored = state_->model.checkpoint().tensors;
  for (const PlannedTensor& tensor : state_->plan.tensors) {
    out << tensor.target.name;
    if (tensor.target.tp_rank >= 0) out << " [rank " << tensor.target.tp_rank << "]";
    out << " " << dtype_name(tensor.target.dtype) << " " << shape_text(tensor.target.shape)
        << " <-";
    std::vector<int> sources;
    for (const auto* ops : {&tensor.ops, &tensor.plus}) {
      for (const CopyOp& op : *ops) {
        if (std::find(sources.begin(), sources.end(), op.source) == sources.end()) {
          sources.push_back(op.source);
        }
      }
    }
    for (const int source : sources) {
      const StoredTensor& from = stored[static_cast<size_t>(source)];
      out << " " << printable(from.name);
      if (from.tp_rank >= 0) out << "[" << from.tp_rank << "]";
    }
    if (tensor.product) out << " " << tensor.product->left << " x " << tensor.product->right;
    if (tensor.divide != 1) out << " / " << tensor.divide;
    if (tensor.multiply != 1) out << " * " << tensor.multiply;
    if (tensor.has_padding) out << " (padded with zeros)";
    out << "\n";
  }
  for (const DroppedTensor& dropped : state_->model.dropped()) {
    out << "dropped: " << printable(dropped.name) << " (" << dropped.rule << ")\n";
  }
  for (const fs::path& file : state_->side_files) {
    out << "copied: " << file.filename().string() << "\n";
  }
  out << state_->plan.tensors.size() << " tensors in " << state_->files.size() << " files, "
      << state_->plan.bytes_in() << " bytes to read, " << bytes_to_write() << " bytes to write to "
      << target_path().string() << "\n";
  return out.str();
}

ConvertSummary Conversion::run(const std::function<void(uint64_t)>& progress) {
  check_replicas(state_->model);
  return write_output(state_->job(), progress);
}

}  // namespace llmctl::reshard
