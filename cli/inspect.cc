#include <algorithm>
#include <array>
#include <exception>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/json.h"
#include "cli/output.h"
#include "cli/size.h"
#include "cli/table.h"
#include "formats/registry.h"
#include "reshard/model.h"

namespace llmctl::cli {
namespace {

struct InspectOptions {
  std::string path;
  SourceFlags about_source;
  bool json = false, tensors = false;
};

struct DtypeTotal {
  int64_t num_tensors = 0;
  uint64_t num_bytes = 0;
};

/// What both ways of printing show, gathered once.
struct Summary {
  uint64_t total_bytes = 0;  ///< of the weight files
  std::map<DType, DtypeTotal> dtypes;
  std::vector<std::string> side_files;
};

Summary summarize(const formats::Checkpoint& checkpoint) {
  Summary summary;
  for (const formats::CheckpointFile& file : checkpoint.files) {
    summary.total_bytes += file.size_bytes;
  }
  for (const formats::StoredTensor& tensor : checkpoint.tensors) {
    DtypeTotal& total = summary.dtypes[tensor.dtype];
    ++total.num_tensors;
    total.num_bytes += tensor.num_bytes();
  }
  for (const std::filesystem::path& path : checkpoint.side_files) {
    summary.side_files.push_back(path.filename().string());
  }
  return summary;
}

bool is_tokenizer(const std::string& name) {
  static constexpr std::array<std::string_view, 6> kNames = {
      "tokenizer.json",          "tokenizer.model", "spiece.model",
      "sentencepiece.bpe.model", "vocab.json",      "vocab.txt"};
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end() ||
         name.ends_with(".tiktoken");
}

std::vector<std::string> tokenizers(const Summary& summary) {
  std::vector<std::string> names;
  std::copy_if(summary.side_files.begin(), summary.side_files.end(), std::back_inserter(names),
               is_tokenizer);
  return names;
}

std::string join(const std::vector<std::string>& parts, const std::string& separator) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : separator) + part;
  return text;
}

std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

/// The name, and the rank where ranks hold different parts.
std::string name_of(const formats::StoredTensor& tensor) {
  std::string text = tensor.name;
  if (tensor.tp_rank >= 0) text += " tp " + std::to_string(tensor.tp_rank);
  if (tensor.pp_rank >= 0) text += " pp " + std::to_string(tensor.pp_rank);
  return text;
}

std::string file_of(const formats::Checkpoint& checkpoint, const formats::StoredTensor& tensor) {
  const std::filesystem::path& path = checkpoint.files.at(static_cast<size_t>(tensor.file)).path;
  const std::filesystem::path inside = path.lexically_relative(checkpoint.path);
  // A checkpoint may be named by one of its files, or through a link.
  return inside.empty() || *inside.begin() == ".." || *inside.begin() == "."
             ? path.filename().string()
             : inside.string();
}

std::string plural(size_t count, const std::string& noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

std::string describe_dtypes(const Summary& summary) {
  std::vector<std::string> parts;
  for (const auto& [dtype, total] : summary.dtypes) {
    parts.push_back(std::string(dtype_name(dtype)) + " " + format_size(total.num_bytes) + " in " +
                    plural(static_cast<size_t>(total.num_tensors), "tensor"));
  }
  return join(parts, "; ");
}

std::string describe_heads(const ModelConfig& config) {
  std::string text = plural(static_cast<size_t>(config.num_attention_heads), "head");
  if (config.num_key_value_heads != config.num_attention_heads) {
    text += " (" + std::to_string(config.num_key_value_heads) + " for keys and values)";
  }
  return text + " of " + std::to_string(config.head_dim);
}

std::string describe_shape(const ModelConfig& config) {
  std::string text = plural(static_cast<size_t>(config.num_hidden_layers), "layer") +
                     ", hidden size " + std::to_string(config.hidden_size) +
                     ", intermediate size " + std::to_string(config.intermediate_size) + ", " +
                     describe_heads(config);
  return text;
}

std::string describe_vocabulary(const ModelConfig& config) {
  std::string text = std::to_string(config.vocab_size) + " tokens, ";
  text +=
      config.tie_word_embeddings ? "output head tied to the embedding" : "output head of its own";
  if (config.max_position_embeddings > 0) {
    text += ", up to " + std::to_string(config.max_position_embeddings) + " positions";
  }
  return text;
}

void print_table(const formats::Checkpoint& checkpoint, const reshard::Model* model,
                 const InspectOptions& options) {
  const Summary summary = summarize(checkpoint);
  const formats::Format* format = formats::find_format(checkpoint.format);
  std::vector<std::vector<std::string>> rows;
  rows.push_back({"path", options.path});
  rows.push_back({"format", checkpoint.format +
                                (format != nullptr ? ": " + std::string(format->summary) : "")});
  rows.push_back({"layout", "tp " + std::to_string(checkpoint.tensor_parallel_size) + ", pp " +
                                std::to_string(checkpoint.pipeline_parallel_size)});
  rows.push_back({"size", format_size(summary.total_bytes) + " in " +
                              plural(checkpoint.files.size(), "file")});
  rows.push_back({"dtypes", describe_dtypes(summary)});
  if (model != nullptr) {
    const uint64_t parameters = reshard::count_parameters(*model);
    rows.push_back({"family", model->config().family});
    rows.push_back(
        {"parameters", format_count(parameters) + " (" + with_thousands(parameters) + ")"});
    rows.push_back({"shape", describe_shape(model->config())});
    rows.push_back({"vocabulary", describe_vocabulary(model->config())});
  }
  const std::vector<std::string> found = tokenizers(summary);
  rows.push_back({"tokenizer", found.empty() ? "none" : join(found, ", ")});
  if (model != nullptr) {
    for (const reshard::DroppedTensor& dropped : model->dropped()) {
      if (options.tensors) rows.push_back({"not needed", dropped.name + ": " + dropped.rule});
    }
  }
  std::string text = format_table(rows, "ll");
  if (options.tensors) {
    std::vector<std::vector<std::string>> list = {{"tensor", "dtype", "shape", "bytes", "file"}};
    for (const formats::StoredTensor& tensor : checkpoint.tensors) {
      list.push_back({name_of(tensor), std::string(dtype_name(tensor.dtype)),
                      shape_text(tensor.shape), with_thousands(tensor.num_bytes()),
                      file_of(checkpoint, tensor)});
    }
    text += "\n" + format_table(list, "lllrl");
  }
  write_stdout(text);
  for (const std::string& note : model != nullptr ? model->notes() : checkpoint.notes) {
    print_note(note);
  }
}

Json config_json(const ModelConfig& config) {
  return Json{{"num_hidden_layers", config.num_hidden_layers},
              {"hidden_size", config.hidden_size},
              {"intermediate_size", config.intermediate_size},
              {"num_attention_heads", config.num_attention_heads},
              {"num_key_value_heads", config.num_key_value_heads},
              {"head_dim", config.head_dim},
              {"vocab_size", config.vocab_size},
              {"max_position_embeddings", config.max_position_embeddings},
              {"tie_word_embeddings", config.tie_word_embeddings}};
}

Json tensor_json(const formats::Checkpoint& checkpoint, const formats::StoredTensor& tensor) {
  Json json = {{"name", tensor.name},
               {"dtype", dtype_name(tensor.dtype)},
               {"shape", tensor.shape},
               {"bytes", tensor.num_bytes()},
               {"file", file_of(checkpoint, tensor)},
               {"offset", tensor.offset_bytes}};
  if (tensor.tp_rank >= 0) json["tp_rank"] = tensor.tp_rank;
  if (tensor.pp_rank >= 0) json["pp_rank"] = tensor.pp_rank;
  return json;
}

void print_as_json(const formats::Checkpoint& checkpoint, const reshard::Model* model,
                   const InspectOptions& options) {
  const Summary summary = summarize(checkpoint);
  Json json = {{"path", options.path},
               {"format", checkpoint.format},
               {"tensor_parallel_size", checkpoint.tensor_parallel_size},
               {"pipeline_parallel_size", checkpoint.pipeline_parallel_size},
               {"num_files", checkpoint.files.size()},
               {"size_bytes", summary.total_bytes},
               {"num_tensors", checkpoint.tensors.size()}};
  for (const auto& [dtype, total] : summary.dtypes) {
    json["dtypes"].push_back({{"dtype", dtype_name(dtype)},
                              {"num_tensors", total.num_tensors},
                              {"size_bytes", total.num_bytes}});
  }
  json["family"] = nullptr;
  if (model != nullptr) {
    json["family"] = model->config().family;
    json["num_parameters"] = reshard::count_parameters(*model);
    json["config"] = config_json(model->config());
    json["not_needed"] = Json::array();
    for (const reshard::DroppedTensor& dropped : model->dropped()) {
      json["not_needed"].push_back({{"name", dropped.name}, {"rule", dropped.rule}});
    }
  }
  json["tokenizers"] = tokenizers(summary);
  json["notes"] = model != nullptr ? model->notes() : checkpoint.notes;
  if (options.tensors) {
    json["tensors"] = Json::array();
    for (const formats::StoredTensor& tensor : checkpoint.tensors) {
      json["tensors"].push_back(tensor_json(checkpoint, tensor));
    }
  }
  print_json(json);
}

ExitCode run_inspect(const InspectOptions& options) {
  const formats::Checkpoint checkpoint = formats::read_checkpoint(options.path);
  // A checkpoint of an unknown family is still shown as far as its format tells; then it is
  // refused. Who brings a family file wants to hear what is wrong with that.
  std::optional<reshard::Model> model;
  std::exception_ptr refusal;
  try {
    model = reshard::open_model(checkpoint, {.family_file = options.about_source.family_file,
                                             .settings = options.about_source.settings()});
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInvalidInput || !options.about_source.family_file.empty())
      throw;
    refusal = std::current_exception();
  }
  const reshard::Model* shown = model ? &*model : nullptr;
  options.json ? print_as_json(checkpoint, shown, options)
               : print_table(checkpoint, shown, options);
  if (refusal) std::rethrow_exception(refusal);
  return ExitCode::kDone;
}

}  // namespace

Run add_inspect(CLI::App& verb) {
  const auto options = std::make_shared<InspectOptions>();
  add_path(verb, "CKPT", options->path, "Checkpoint: a directory or a weights file");
  verb.add_flag("--tensors", options->tensors, "List every stored tensor too");
  verb.add_flag("--json", options->json, "Print one JSON document instead of a table");
  options->about_source.add(verb);
  static constexpr std::array<std::string_view, 3> kExamples = {
      "inspect ./bloom-560m", "inspect ./bloom-ft/2-gpu --tensors",
      "inspect ./llama --json | jq .num_parameters"};
  set_examples(verb, kExamples);
  return [options] { return run_inspect(*options); };
}

}  // namespace llmctl::cli
