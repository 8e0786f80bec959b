#include "reshard/convert.h"

#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "formats/core/atomic_directory.h"
#include "formats/core/error.h"
#include "formats/faster_transformer.h"
#include "formats/registry.h"
#include "reshard/manifest.h"
#include "reshard/quantization.h"
#include "reshard/synth.h"
#include "reshard/target.h"
#include "reshard/whole_replicas.h"

namespace llmctl::reshard {

namespace fs = std::filesystem;
using formats::FilePlan;
using formats::StoredTensor;

namespace {

std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace

struct Conversion::State {
  ConvertOptions options;
  Model model;
  fs::path target;
  Plan plan;
  std::vector<FilePlan> files;
  std::vector<fs::path> side_files;
  std::vector<std::string> notes;
  Geometry geometry;

  /// A target in the same format takes the padding of the vocabulary over.
  OpenOptions open_options() const {
    return {options.family_file, options.settings, options.format == "megatron"};
  }

  void prepare() {
    const formats::Format* format = formats::find_format(options.format);
    if (format == nullptr || format->place == nullptr) {
      throw_usage("--to " + options.format, "llmctl does not write this format",
                  "use hf, ft or megatron");
    }
    if (options.destination.empty()) {
      throw_usage("destination", "the path is empty", "name a directory");
    }
    if (options.tp < 1 || options.tp > 65536) {
      throw_usage("--tp " + std::to_string(options.tp), "must be at least 1");
    }
    model = options.synth ? describe_model(*options.synth->family, options.synth->config,
                                           options.synth->dtype,
                                           "seed " + std::to_string(options.synth->seed))
                          : open_model(options.source, open_options());
    notes = model.notes();
    if (options.keep_pipeline) options.pp = model.checkpoint().pipeline_parallel_size;
    const bool ft = options.format == "ft";
    const bool has_stages = options.format == "megatron" || options.format == "export";
    if (!has_stages && (options.pp != 1 || options.virtual_pp != 1)) {
      const bool is_virtual = options.pp == 1;
      const std::string flag = is_virtual ? "--virtual-pp" : "--pp";
      throw_usage(flag + " " + std::to_string(is_virtual ? options.virtual_pp : options.pp),
                  "only Megatron's layout is split over pipeline stages",
                  "leave " + flag + " out, or give --to megatron");
    }
    if (options.format == "hf" && options.tp != 1) {
      throw_usage("--tp " + std::to_string(options.tp),
                  "Hugging Face files are not split by tensor-parallel size",
                  "leave --tp out, or give --to ft or megatron");
    }
    if (model.checkpoint().megatron == nullptr && !options.settings.empty()) {
      throw_usage("--set or --vocab-size", "the source is no Megatron checkpoint", "leave it out");
    }
    target = without_trailing_slash(options.destination);
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
    if (fs::exists(fs::symlink_status(target, ec)) && !options.overwrite && !options.plan_only) {
      throw_usage(target.string(), "already exists",
                  "give --overwrite to replace it, or name another destination");
    }
    Target made = make_target(model, options);
    plan = std::move(made.plan);
    files = std::move(made.files);
    side_files = std::move(made.side_files);
    notes.insert(notes.end(), made.notes.begin(), made.notes.end());
    note_dequantized();
    geometry = std::move(made.geometry);
    if (options.overwrite && !options.plan_only) check_replaced();
    if (!options.plan_only) check_resources(job());
  }

  /// Integers become what they stand for where the target does not take them as they are.
  void note_dequantized() {
    const auto stored = quantization_of(model.checkpoint());
    const bool keeps = std::any_of(plan.tensors.begin(), plan.tensors.end(),
                                   [](const PlannedTensor& t) { return bool(t.quantization); });
    if (!stored || keeps) return;
    notes.push_back("the source is quantised to " + quantization_text(*stored) +
                    ": its matrices are written as the " +
                    (options.dtype ? std::string(dtype_name(*options.dtype)) : "F32") +
                    " values that the integers stand for");
  }

  /// What --overwrite may delete: a checkpoint, and not the one that is read.
  void check_replaced() const {
    std::error_code ec;
    if (!fs::is_directory(target, ec)) return;
    if (!options.synth && fs::equivalent(target, options.source, ec)) return check_carried();
    if (!options.synth && is_or_holds(target, options.source)) {
      throw_usage(target.string(), "holds the source, which replacing it would delete",
                  "name another destination");
    }
    const auto formats = formats::format_table();
    const bool is_checkpoint =
        fs::exists(target / kManifestName, ec) ||
        std::any_of(formats.begin(), formats.end(),
                    [&](const formats::Format& format) { return format.detect(target); });
    if (is_checkpoint || fs::is_empty(target, ec)) return;
    throw_usage(target.string(), "is no checkpoint, and --overwrite would delete what is in it",
                "delete it yourself, or name another destination");
  }

  /// A source that is converted where it stands may hold nothing but what is read or carried along.
  void check_carried() const {
    std::set<fs::path> known = {kManifestName};
    const formats::Checkpoint& source = model.checkpoint();
    for (const auto& file : source.files) known.insert(file.path.filename());
    for (const auto& [name, text] : source.texts) known.insert(name);
    for (const fs::path& file : side_files) known.insert(file.filename());
    for (const FilePlan& file : files) known.insert(file.name);
    for (const std::string& name : list_files_below(target)) {
      if (known.count(name) != 0) continue;
      throw_usage(target.string(),
                  "is the source, and '" + printable(name, 100) + "' in it would be lost",
                  "name another destination");
    }
  }

  uint64_t bytes_to_write() const {
    uint64_t bytes = 0;
    for (const FilePlan& file : files) bytes += file.size_bytes;
    return bytes;
  }

  std::map<std::string, std::string> request() const {
    const char* policies[] = {"inf", "clamp", "error"};
    std::string blocks;
    for (const int64_t layers : options.pipeline_blocks) {
      blocks += (blocks.empty() ? "" : ",") + std::to_string(layers);
    }
    return {{"--to", options.format},
            {"--matrix-layout", std::string(formats::matrix_layout_name(options.matrix_layout))},
            {"--compress", options.compress ? "zstd" : ""},
            {"--quant", options.quantization ? quantization_text(*options.quantization) : ""},
            {"--tp", std::to_string(options.tp)},
            {"--pp", std::to_string(options.pp)},
            {"--pipeline-blocks", blocks},
            {"--virtual-pp", std::to_string(options.virtual_pp)},
            {"--megatron-names", options.megatron_names.value_or("")},
            {"--keep-rng", options.keep_rng ? "given" : ""},
            {"--dtype", options.dtype ? std::string(dtype_name(*options.dtype)) : ""},
            {"--on-overflow", policies[static_cast<int>(options.on_overflow)]},
            {"--ft-exact", options.ft_exact ? "given" : ""},
            {"--model-name", options.model_name},
            {"--max-shard-size", std::to_string(options.max_shard_bytes)},
            {"--verify", options.verify == Verify::kNone ? "none" : "pass or readback"}};
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
    job.read_back = open_options();
    job.resume = options.resume;
    job.request = request();
    job.pack_matrices =
        options.format == "export" && options.matrix_layout == formats::MatrixLayout::kPanels16;
    job.compress = options.compress;
    job.with_manifest = !options.ft_exact;
    job.format = options.format;
    job.geometry = geometry;
    job.group = options.group;
    if (options.synth) {
      job.fill = [this](TensorSink& sink, const ExecuteOptions& execute_options) {
        fill_random(plan, options.synth->seed, sink, execute_options);
      };
      job.verify = Verify::kNone;
      job.sparse = options.synth->sparse;
    }
    return job;
  }

  kernels::Overflow overflow() const {
    return options.on_overflow == OnOverflow::kClamp ? kernels::Overflow::kClamp
                                                     : kernels::Overflow::kInf;
  }
};

std::string format_of(const fs::path& path) {
  return std::string(formats::detect_format(path).name);
}

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
    if (tensor.target.pp_rank >= 0) out << " [stage " << tensor.target.pp_rank << "]";
    out << " "
        << (tensor.quantization ? quantization_text(tensor.quantization)
                                : std::string(dtype_name(tensor.target.dtype)))
        << " " << shape_text(tensor.target.shape) << " <-";
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
      << (state_->options.synth ? 0 : state_->plan.bytes_in()) << " bytes to read, "
      << bytes_to_write() << " bytes to write to " << target_path().string() << "\n";
  return out.str();
}

ConvertSummary Conversion::run(const std::function<void(uint64_t)>& progress) {
  if (!state_->options.synth) {
    const WholeReplicas read_with_the_rest(state_->model);
    const ProcessGroup* group = state_->options.group;
    check_replicas(state_->model, &read_with_the_rest, group == nullptr ? 0 : group->rank(),
                   group == nullptr ? 1 : group->size());
  }
  return write_output(state_->job(), progress);
}

}  // namespace llmctl::reshard
