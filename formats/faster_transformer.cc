#include "formats/faster_transformer.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/directory.h"
#include "formats/ini.h"
#include "formats/stranger.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxIniBytes = uint64_t{1} << 20;
constexpr int kMaxRanks = 65536;
constexpr const char* kConfig = "config.ini";

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

/// A decimal number without sign or leading zeros, at most kMaxRanks.
std::optional<int> parse_plain_number(std::string_view text) {
  if (text.empty() || (text.size() > 1 && text.front() == '0')) return std::nullopt;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
  }
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value > kMaxRanks) {
    return std::nullopt;
  }
  return value;
}

bool is_weights_name(std::string_view name) {
  return name.size() > 10 && name.substr(0, 6) == "model." && ends_with(name, ".bin");
}

/// What SmoothQuant adds beside the ordinary weights, which stay complete without it.
bool is_int8_extra(std::string_view tensor) {
  return ends_with(tensor, ".weight.int8") || ends_with(tensor, ".scale") ||
         ends_with(tensor, ".scale_inter") || ends_with(tensor, ".scale_out");
}

/// "2-gpu" whether the path says so itself or through "." or a link.
std::optional<int> ranks_of_directory(const fs::path& directory) {
  std::error_code ec;
  for (const fs::path& path :
       {fs::absolute(directory, ec).lexically_normal(), fs::canonical(directory, ec)}) {
    const fs::path name = path.has_filename() ? path.filename() : path.parent_path().filename();
    if (const auto ranks = parse_ft_directory_name(name.string())) return ranks;
  }
  return std::nullopt;
}

std::vector<std::string> rank_directories(const fs::path& parent) {
  std::vector<std::string> found;
  for (const std::string& name : list_directory(parent)) {
    if (parse_ft_directory_name(name) && leads_to_directory(parent / name)) found.push_back(name);
  }
  return found;
}

bool has_weights(const fs::path& directory) {
  const auto names = list_directory(directory);
  return std::any_of(names.begin(), names.end(), is_weights_name);
}

/// `path` itself, or the one N-gpu directory in it.
fs::path find_rank_directory(const fs::path& path) {
  if (has_entry(path, kConfig) || has_weights(path)) return path;
  const std::vector<std::string> found = rank_directories(path);
  if (found.size() == 1) return path / found.front();
  if (found.empty()) {
    throw_invalid(path.string(), "no model.*.bin files in it",
                  "give the N-gpu directory that the converter wrote");
  }
  std::string list;
  for (const std::string& name : found) list += (list.empty() ? "" : ", ") + name;
  throw_invalid(path.string(), "holds several checkpoints: " + list,
                "give one of them, e.g. " + printable((path / found.front()).string()));
}

struct Config {
  DType dtype = DType::F32;
  std::optional<int64_t> tensor_para_size;
};

/// The sections that describe the checkpoint are those with weight_data_type: update_gpt_config.py
/// adds others whose tensor_para_size is that of a run.
Config read_config(const Ini& ini, const std::string& where) {
  Config config;
  std::string type_text;
  for (const std::string& section : ini.sections()) {
    const auto text = ini.find(section, "weight_data_type");
    if (!text) continue;
    if (!type_text.empty() && *text != type_text) {
      throw_invalid(where, "weight_data_type is both '" + printable(type_text) + "' and '" +
                               printable(*text) + "'");
    }
    type_text = *text;
    if (const auto size = ini.find_integer(section, "tensor_para_size")) {
      if (config.tensor_para_size && *config.tensor_para_size != *size) {
        throw_invalid(where, "tensor_para_size is both " +
                                 std::to_string(*config.tensor_para_size) + " and " +
                                 std::to_string(*size));
      }
      config.tensor_para_size = size;
    }
  }
  constexpr const char* kHint = "weight_data_type must be fp32, fp16 or bf16";
  if (type_text.empty()) throw_invalid(where, "no section has weight_data_type", kHint);
  // FasterTransformer looks for the word inside the value.
  int matches = 0;
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
    if (type_text.find(dtype_info(dtype).flag) == std::string::npos) continue;
    config.dtype = dtype;
    ++matches;
  }
  if (matches != 1) {
    throw_invalid(where, "unknown weight_data_type '" + printable(type_text, 60) + "'", kHint);
  }
  return config;
}

Ini read_ini(const fs::path& directory, Checkpoint& checkpoint) {
  if (!has_entry(directory, kConfig)) {
    throw_invalid((directory / kConfig).string(), "no such file",
                  "it says what type the weights have; write one with [gpt] and "
                  "weight_data_type = fp32, fp16 or bf16");
  }
  const fs::path path = resolve_inside(directory, kConfig);
  if (const auto stranger = describe_stranger_file(path)) {
    throw_invalid(path.string(), "expected an INI file, this is " + stranger->what, stranger->hint);
  }
  return Ini::parse(checkpoint.texts[kConfig] = read_text_file(path, kMaxIniBytes), path.string());
}

void read_weights_file(const fs::path& directory, const std::string& name, DType dtype,
                       Checkpoint& checkpoint) {
  const fs::path path = resolve_inside(directory, name);
  const auto parsed = parse_ft_file_name(name);
  if (!parsed) throw_invalid(path.string(), "the rank in the name is not a plain number");
  const uint64_t size = File::open_read(path).size_bytes();
  if (size == 0) throw_invalid(path.string(), "an empty file", "fetch or convert it again");
  if (size < 512) {
    // Only short files can be pointers; weights may start with any bytes.
    const auto stranger = describe_stranger_file(path);
    if (stranger && stranger->what.find("LFS") != std::string::npos) {
      throw_invalid(path.string(), "this is " + stranger->what, stranger->hint);
    }
  }
  if (size % dtype_bytes(dtype) != 0) {
    throw_invalid(path.string(),
                  std::to_string(size) + " bytes are no whole number of " +
                      std::string(dtype_info(dtype).flag) + " values",
                  "the file is cut short, or weight_data_type in config.ini is wrong");
  }
  StoredTensor& tensor = checkpoint.tensors.emplace_back();
  tensor.name = parsed->tensor;
  tensor.dtype = dtype;
  tensor.shape = {static_cast<int64_t>(size / dtype_bytes(dtype))};
  tensor.file = static_cast<int>(checkpoint.files.size());
  tensor.tp_rank = parsed->tp_rank;
  checkpoint.files.push_back({path, size});
}

/// The tensor parallel size that the directory's name, config.ini and the files agree on.
int agree_on_ranks(const fs::path& directory, const Config& config, const Checkpoint& checkpoint) {
  const std::optional<int> named = ranks_of_directory(directory);
  int highest = -1;
  size_t highest_tensor = 0;
  for (size_t i = 0; i < checkpoint.tensors.size(); ++i) {
    if (checkpoint.tensors[i].tp_rank <= highest) continue;
    highest = checkpoint.tensors[i].tp_rank;
    highest_tensor = i;
  }
  if (config.tensor_para_size &&
      (*config.tensor_para_size < 1 || *config.tensor_para_size > kMaxRanks ||
       (named && *config.tensor_para_size != *named))) {
    throw_invalid((directory / kConfig).string(),
                  "tensor_para_size is " + std::to_string(*config.tensor_para_size) +
                      (named ? ", but the directory is for " + std::to_string(*named) : ""),
                  "correct whichever is wrong");
  }
  const int ranks = named                     ? *named
                    : config.tensor_para_size ? static_cast<int>(*config.tensor_para_size)
                                              : std::max(highest + 1, 1);
  if (highest >= ranks) {
    throw_invalid(checkpoint.files[highest_tensor].path.string(),
                  "rank " + std::to_string(highest) + " in a checkpoint of " +
                      std::to_string(ranks) + " (ranks 0 to " + std::to_string(ranks - 1) + ")",
                  "the directory mixes checkpoints or has the wrong name");
  }
  return ranks;
}

/// Requires: no rank above ranks - 1, and no file name twice.
void check_ranks(const fs::path& directory, int ranks, const Checkpoint& checkpoint) {
  std::map<std::string_view, std::map<int, const StoredTensor*>> tensors;
  for (const StoredTensor& tensor : checkpoint.tensors) {
    tensors[tensor.name][tensor.tp_rank] = &tensor;
  }
  const auto file_of = [&](const StoredTensor* tensor) {
    return checkpoint.files[static_cast<size_t>(tensor->file)].path.string();
  };
  for (const auto& [name, files] : tensors) {
    const bool is_whole = files.begin()->first < 0;
    if (is_whole && files.size() == 1) continue;
    if (is_whole) {
      throw_invalid(file_of(files.begin()->second),
                    "a whole tensor that is also split over ranks, see " +
                        printable(fs::path(file_of(files.rbegin()->second)).filename().string()),
                    "the directory mixes checkpoints");
    }
    const StoredTensor* first = files.begin()->second;
    for (int rank = 0; rank < ranks; ++rank) {
      const auto found = files.find(rank);
      if (found == files.end()) {
        throw_invalid(
            (directory / (std::string(name) + "." + std::to_string(rank) + ".bin")).string(),
            "missing: the tensor is split over " + std::to_string(ranks) + " ranks and " +
                std::to_string(files.size()) + " are there",
            "fetch or convert it again");
      }
      if (found->second->shape != first->shape) {
        throw_invalid(file_of(found->second),
                      std::to_string(found->second->num_bytes()) + " bytes, but rank " +
                          std::to_string(first->tp_rank) + " of the tensor has " +
                          std::to_string(first->num_bytes()),
                      "fetch or convert it again");
      }
    }
  }
}

}  // namespace

std::optional<FtFileName> parse_ft_file_name(std::string_view name) {
  if (!is_weights_name(name)) return std::nullopt;
  FtFileName parsed;
  std::string_view tensor = name.substr(0, name.size() - 4);
  const size_t dot = tensor.rfind('.');
  const std::string_view last = tensor.substr(dot + 1);
  const bool is_rank = !last.empty() && last.find_first_not_of("0123456789") == std::string::npos;
  if (is_rank) {
    const auto rank = parse_plain_number(last);
    if (!rank) return std::nullopt;
    parsed.tp_rank = *rank;
    tensor = tensor.substr(0, dot);
  }
  if (tensor == "model") return std::nullopt;
  parsed.tensor = std::string(tensor);
  return parsed;
}

std::optional<int> parse_ft_directory_name(std::string_view name) {
  if (!ends_with(name, "-gpu")) return std::nullopt;
  const auto ranks = parse_plain_number(name.substr(0, name.size() - 4));
  if (!ranks || *ranks == 0) return std::nullopt;
  return ranks;
}

bool detect_faster_transformer(const fs::path& path) {
  try {
    if (!leads_to_directory(path)) return false;
    return has_entry(path, kConfig) || has_weights(path) || !rank_directories(path).empty();
  } catch (const std::exception&) {
    return false;
  }
}

Checkpoint read_faster_transformer(const fs::path& path) {
  const fs::path directory = find_rank_directory(path);
  Checkpoint checkpoint;
  checkpoint.format = "ft";
  checkpoint.path = path;
  const Ini ini = read_ini(directory, checkpoint);
  const Config config = read_config(ini, (directory / kConfig).string());
  size_t num_dropped = 0;
  for (const std::string& name : list_directory(directory)) {
    if (!is_weights_name(name)) continue;
    const auto parsed = parse_ft_file_name(name);
    if (parsed && is_int8_extra(parsed->tensor)) {
      ++num_dropped;
      continue;
    }
    read_weights_file(directory, name, config.dtype, checkpoint);
  }
  if (checkpoint.tensors.empty()) {
    throw_invalid(directory.string(), "config.ini but no model.*.bin files",
                  "fetch or convert it again");
  }
  if (num_dropped > 0) {
    checkpoint.notes.push_back(std::to_string(num_dropped) +
                               " int8 weight and scale files (SmoothQuant) are dropped; the " +
                               std::string(dtype_info(config.dtype).flag) +
                               " weights beside them are used");
  }
  checkpoint.tensor_parallel_size = agree_on_ranks(directory, config, checkpoint);
  check_ranks(directory, checkpoint.tensor_parallel_size, checkpoint);
  const char* kGeneration = "generation_config.json";
  if (has_entry(directory, kGeneration)) {
    checkpoint.texts[kGeneration] =
        read_text_file(resolve_inside(directory, kGeneration), kMaxIniBytes);
  }
  checkpoint.side_files = find_side_files(directory);
  return checkpoint;
}

std::vector<FilePlan> place_faster_transformer(std::span<const TargetTensor> tensors,
                                               const WriteOptions&) {
  std::vector<FilePlan> plans;
  std::set<std::string> names;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TargetTensor& tensor = tensors[i];
    FilePlan plan;
    plan.name =
        tensor.name + (tensor.tp_rank < 0 ? "" : "." + std::to_string(tensor.tp_rank)) + ".bin";
    const auto bytes = checked_num_bytes(tensor.dtype, tensor.shape);
    if (!is_plain_name(plan.name) || !bytes || !names.insert(plan.name).second) {
      throw Error(ErrorCode::kInternal, "no distinct file name, or a size that overflows",
                  "tensor '" + printable(tensor.name) + "'");
    }
    plan.size_bytes = *bytes;
    plan.placements.push_back({static_cast<int>(i), 0});
    plans.push_back(std::move(plan));
  }
  return plans;
}

}  // namespace llmctl::formats
