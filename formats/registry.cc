#include "formats/registry.h"

#include <array>
#include <system_error>

#include "formats/core/error.h"
#include "formats/deepspeed.h"
#include "formats/export.h"
#include "formats/faster_transformer.h"
#include "formats/hugging_face.h"
#include "formats/megatron.h"
#include "formats/megatron_writer.h"
#include "formats/safetensors.h"
#include "formats/stranger.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;

std::vector<FilePlan> place_megatron_tree(std::span<const TargetTensor> tensors,
                                          const WriteOptions& options) {
  return place_megatron(tensors, *options.megatron);
}

// An export has safetensors files as well, so it is tried first.
constexpr std::array kFormats = {
    Format{"export", "llmctl export directory (model.json, rank-*.safetensors)", detect_export,
           read_export, place_export},
    Format{"hf", "Hugging Face directory (safetensors or torch weights, config.json)",
           detect_hugging_face, read_hugging_face, place_safetensors},
    Format{"ft", "FasterTransformer N-gpu directory (model.*.bin, config.ini)",
           detect_faster_transformer, read_faster_transformer, place_faster_transformer},
    // Before Megatron's: such trees have both tracker files.
    Format{"deepspeed", "Megatron-DeepSpeed directory (layer_*-model_*-model_states.pt)",
           detect_deepspeed, read_deepspeed, nullptr},
    Format{"megatron", "Megatron-LM or Yuan 2.0 directory (mp_rank_*/model_optim_rng.pt)",
           detect_megatron, read_megatron, place_megatron_tree},
};

/// Whether `name` is that of a file which only makes sense together with those beside it.
bool is_part_of_checkpoint(const std::string& name) {
  return name == "config.json" || name == "config.ini" || parse_ft_file_name(name) ||
         (name.size() > 11 && name.compare(name.size() - 11, 11, ".index.json") == 0);
}

}  // namespace

std::span<const Format> format_table() { return kFormats; }

const Format* find_format(std::string_view name) {
  for (const Format& format : kFormats) {
    if (format.name == name) return &format;
  }
  return nullptr;
}

std::string describe_known_formats() {
  std::string text;
  for (const Format& format : kFormats) {
    text += (text.empty() ? "" : "; ") + std::string(format.summary);
  }
  return text;
}

const Format& detect_format(const fs::path& path) {
  if (path.empty()) throw_usage("checkpoint", "the path is empty", "name a directory or a file");
  std::error_code ec;
  const fs::file_status status = fs::status(path, ec);
  if (!fs::exists(status)) {
    throw_invalid(path.string(), ec && ec != std::errc::no_such_file_or_directory
                                     ? "cannot be opened: " + ec.message()
                                     : "no such file or directory");
  }
  const bool is_directory = fs::is_directory(status);
  if (!is_directory && !fs::is_regular_file(status)) {
    throw_invalid(path.string(), "neither a directory nor a regular file");
  }
  for (const Format& format : kFormats) {
    if (format.detect(path)) return format;
  }
  const auto stranger =
      is_directory ? describe_stranger_directory(path) : describe_stranger_file(path);
  if (!is_directory && is_part_of_checkpoint(path.filename().string())) {
    throw_invalid(path.string(), "this is one file of a checkpoint",
                  "give the directory it lies in");
  }
  if (stranger) throw_invalid(path.string(), "this is " + stranger->what, stranger->hint);
  throw_invalid(path.string(), "not a checkpoint that llmctl knows",
                "known are: " + describe_known_formats());
}

Checkpoint read_checkpoint(const fs::path& path) { return detect_format(path).read(path); }

}  // namespace llmctl::formats
