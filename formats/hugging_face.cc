#include "formats/hugging_face.h"

#include <algorithm>
#include <deque>
#include <map>
#include <system_error>
#include <utility>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/directory.h"
#include "formats/json_scanner.h"
#include "formats/safetensors.h"
#include "formats/stranger.h"
#include "formats/torch_file.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxIndexBytes = uint64_t{64} << 20;
constexpr uint64_t kMaxConfigBytes = uint64_t{1} << 20;
constexpr size_t kMaxTensors = size_t{1} << 20;
constexpr size_t kMaxNameBytes = 4096;

constexpr const char* kSafetensors = "model.safetensors";
constexpr const char* kSafetensorsIndex = "model.safetensors.index.json";
constexpr const char* kTorch = "pytorch_model.bin";
constexpr const char* kTorchIndex = "pytorch_model.bin.index.json";

std::string in_quotes(const std::string& text) { return "'" + printable(text) + "'"; }

std::string count_text(size_t count, const char* noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

/// Weights under another name than transformers gives: "*.safetensors", or shards without index.
std::vector<std::string> loose_weights(const fs::path& directory, const std::string& extension) {
  std::vector<std::string> names;
  for (const std::string& name : list_directory(directory)) {
    if (fs::path(name).extension() != extension) continue;
    if (extension == ".bin" && name.rfind("pytorch_model", 0) != 0) continue;
    if (name.rfind("adapter_model", 0) != 0) names.push_back(name);
  }
  return names;
}

WeightIndex scan_weight_index(JsonScanner json, const std::string& where) {
  WeightIndex index;
  std::map<std::string, int> shard_numbers;
  std::deque<WeightIndex::Entry> entries;  // grows without a second copy
  bool has_map = false;
  std::string key;
  json.enter_object();
  while (json.next_key(key, kMaxNameBytes)) {
    if (key == "metadata" && json.is_at_object()) {
      json.enter_object();
      while (json.next_key(key, kMaxNameBytes)) {
        if (key != "total_size") {
          json.skip_value();
        } else if (const auto size = json.read_any_size()) {
          index.has_total_size = true;
          index.total_size = *size;
        }
      }
    } else if (key == "weight_map") {
      if (std::exchange(has_map, true)) throw_invalid(where, "'weight_map' is given twice");
      json.enter_object();
      while (json.next_key(key, kMaxNameBytes)) {
        if (entries.size() == kMaxTensors) {
          throw_invalid(where, "more than " + std::to_string(kMaxTensors) + " tensors");
        }
        const std::string shard = json.read_text(kMaxNameBytes);
        if (!is_plain_name(shard)) {
          throw_invalid(where, "tensor " + in_quotes(key) + " is said to lie in " +
                                   in_quotes(shard) +
                                   ", which is not the name of a file beside the index");
        }
        const auto [place, is_new] =
            shard_numbers.emplace(shard, static_cast<int>(index.shards.size()));
        if (is_new) index.shards.push_back(shard);
        entries.push_back({key, place->second});
      }
    } else {
      json.skip_value();
    }
  }
  json.finish(true);
  if (!has_map) throw_invalid(where, "no 'weight_map'");
  if (entries.empty()) throw_invalid(where, "'weight_map' is empty");
  index.entries.assign(std::make_move_iterator(entries.begin()),
                       std::make_move_iterator(entries.end()));
  std::sort(index.entries.begin(), index.entries.end(),
            [](const auto& a, const auto& b) { return a.tensor < b.tensor; });
  const auto twice =
      std::adjacent_find(index.entries.begin(), index.entries.end(),
                         [](const auto& a, const auto& b) { return a.tensor == b.tensor; });
  if (twice != index.entries.end()) {
    throw_invalid(where, "tensor " + in_quotes(twice->tensor) + " is listed twice");
  }
  return index;
}

WeightIndex read_weight_index(const fs::path& path) {
  const std::string where = path.string();
  const File source = File::open_read(path);
  const uint64_t size = source.size_bytes();
  if (size > kMaxIndexBytes) {
    throw_invalid(where, std::to_string(size) + " bytes, an index has at most " +
                             std::to_string(kMaxIndexBytes));
  }
  if (const auto stranger = describe_stranger_file(path)) {
    throw_invalid(where, "expected a JSON index, this is " + stranger->what, stranger->hint);
  }
  std::vector<std::byte> window(size_t{64} << 10);
  uint64_t done = 0;
  const auto refill = [&]() -> std::span<const std::byte> {
    const auto part = std::span(window).first(
        static_cast<size_t>(std::min<uint64_t>(window.size(), size - done)));
    if (!part.empty()) source.read_at(part, done);
    done += part.size();
    return part;
  };
  return scan_weight_index(JsonScanner(refill, where), where);
}

/// Adds the file `name` and its tensors to the checkpoint.
void read_weights(const fs::path& path, Checkpoint& checkpoint) {
  const int number = static_cast<int>(checkpoint.files.size());
  checkpoint.files.push_back({path, File::open_read(path).size_bytes()});
  if (path.extension() == ".safetensors" ||
      (path.extension() != ".bin" && is_safetensors_file(path))) {
    read_safetensors(path, number, checkpoint.tensors);
  } else {
    read_torch_file(path, number, checkpoint.tensors, checkpoint.notes);
  }
}

/// Refuses a name that occurs twice, be it in one file (nested torch dicts can do that) or in two.
std::vector<const StoredTensor*> sort_by_name(const Checkpoint& checkpoint) {
  std::vector<const StoredTensor*> tensors;
  tensors.reserve(checkpoint.tensors.size());
  for (const StoredTensor& tensor : checkpoint.tensors) tensors.push_back(&tensor);
  std::sort(tensors.begin(), tensors.end(), [](const auto* a, const auto* b) {
    return a->name != b->name ? a->name < b->name : a->file < b->file;
  });
  const auto file_of = [&](const StoredTensor* tensor) {
    return checkpoint.files[static_cast<size_t>(tensor->file)].path;
  };
  for (size_t i = 1; i < tensors.size(); ++i) {
    if (tensors[i]->name != tensors[i - 1]->name) continue;
    const fs::path first = file_of(tensors[i - 1]), second = file_of(tensors[i]);
    throw_invalid(first.string(),
                  "tensor " + in_quotes(tensors[i]->name) +
                      (first == second ? " is there twice"
                                       : " lies also in " + in_quotes(second.filename().string())));
  }
  return tensors;
}

void check_against_index(const WeightIndex& index, const fs::path& index_path,
                         Checkpoint& checkpoint) {
  const std::vector<const StoredTensor*> tensors = sort_by_name(checkpoint);
  const auto shard_name = [&](int shard) { return index.shards[static_cast<size_t>(shard)]; };
  std::vector<bool> is_listed(tensors.size(), false);
  uint64_t total = 0;
  for (const WeightIndex::Entry& entry : index.entries) {
    const auto found = std::lower_bound(
        tensors.begin(), tensors.end(), entry.tensor,
        [](const StoredTensor* tensor, const std::string& name) { return tensor->name < name; });
    if (found == tensors.end() || (*found)->name != entry.tensor) {
      throw_invalid(index_path.string(),
                    "tensor " + in_quotes(entry.tensor) + " is said to lie in " +
                        in_quotes(shard_name(entry.shard)) + ", which does not hold it",
                    "index and shards do not belong together; fetch them again");
    }
    if ((*found)->file != entry.shard) {
      throw_invalid(index_path.string(),
                    "tensor " + in_quotes(entry.tensor) + " is said to lie in " +
                        in_quotes(shard_name(entry.shard)) + ", but lies in " +
                        in_quotes(shard_name((*found)->file)),
                    "index and shards do not belong together; fetch them again");
    }
    is_listed[static_cast<size_t>(found - tensors.begin())] = true;
    total += (*found)->num_bytes();
  }
  std::vector<size_t> extra;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!is_listed[i]) extra.push_back(i);
  }
  const std::string name = index_path.filename().string();
  if (!extra.empty()) {
    checkpoint.notes.push_back(name + ": " + count_text(extra.size(), "tensor") +
                               " in the shards not listed, first " +
                               in_quotes(tensors[extra.front()]->name));
  }
  if (index.has_total_size && index.total_size != total) {
    checkpoint.notes.push_back(name + ": total_size is " + std::to_string(index.total_size) +
                               ", the tensors listed have " + std::to_string(total) + " bytes");
  }
}

void read_indexed(const fs::path& directory, const char* index_name, Checkpoint& checkpoint) {
  const fs::path index_path = resolve_inside(directory, index_name);
  const WeightIndex index = read_weight_index(index_path);
  // All shards are looked for before any is read: a missing one is the commonest fault of all.
  std::vector<fs::path> paths;
  for (size_t shard = 0; shard < index.shards.size(); ++shard) {
    const std::string& name = index.shards[shard];
    if (!has_entry(directory, name)) {
      const auto held = std::count_if(
          index.entries.begin(), index.entries.end(),
          [&](const WeightIndex::Entry& e) { return e.shard == static_cast<int>(shard); });
      throw_invalid((directory / name).string(),
                    "missing: the index says that it holds " +
                        count_text(static_cast<size_t>(held), "tensor"),
                    "fetch this file");
    }
    paths.push_back(resolve_inside(directory, name));
  }
  for (size_t shard = 0; shard < paths.size(); ++shard) read_weights(paths[shard], checkpoint);
  check_against_index(index, index_path, checkpoint);
}

void read_directory_weights(const fs::path& directory, Checkpoint& checkpoint) {
  const bool has_single = has_entry(directory, kSafetensors);
  const bool has_index = has_entry(directory, kSafetensorsIndex);
  if (has_single) {
    read_weights(resolve_inside(directory, kSafetensors), checkpoint);
    if (has_index) {
      checkpoint.notes.push_back(std::string(kSafetensorsIndex) + " is not used because " +
                                 kSafetensors + " exists");
    }
    return;
  }
  if (has_index) return read_indexed(directory, kSafetensorsIndex, checkpoint);
  if (has_entry(directory, kTorch)) {
    return read_weights(resolve_inside(directory, kTorch), checkpoint);
  }
  if (has_entry(directory, kTorchIndex)) return read_indexed(directory, kTorchIndex, checkpoint);
  for (const char* extension : {".safetensors", ".bin"}) {
    const std::vector<std::string> names = loose_weights(directory, extension);
    if (names.size() == 1) return read_weights(resolve_inside(directory, names[0]), checkpoint);
    if (names.size() > 1) {
      throw_invalid(directory.string(),
                    count_text(names.size(), "weights file") + " (" + printable(names.front()) +
                        ", ...) but no index",
                    std::string("fetch ") +
                        (extension[1] == 's' ? kSafetensorsIndex : kTorchIndex) +
                        ", or give one of the files");
    }
  }
  const auto stranger = describe_stranger_directory(directory);
  throw_invalid(directory.string(), stranger ? "this is " + stranger->what : "no weights",
                stranger ? stranger->hint : "fetch model.safetensors or pytorch_model.bin");
}

void read_text(const fs::path& directory, const char* name, Checkpoint& checkpoint) {
  if (!has_entry(directory, name)) return;
  const fs::path path = resolve_inside(directory, name);
  if (const auto stranger = describe_stranger_file(path)) {
    throw_invalid(path.string(), "expected JSON, this is " + stranger->what, stranger->hint);
  }
  checkpoint.texts[name] = read_text_file(path, kMaxConfigBytes);
}

}  // namespace

WeightIndex parse_weight_index(std::span<const std::byte> text, const std::string& where) {
  return scan_weight_index(JsonScanner([&] { return std::exchange(text, {}); }, where), where);
}

bool detect_hugging_face(const fs::path& path) {
  try {
    if (leads_to_file(path))
      return is_safetensors_file(path) || is_torch_file(path) || path.extension() == ".safetensors";
    if (!leads_to_directory(path)) return false;
    for (const char* name : {kSafetensors, kSafetensorsIndex, kTorch, kTorchIndex}) {
      if (has_entry(path, name)) return true;
    }
    return !loose_weights(path, ".safetensors").empty() || !loose_weights(path, ".bin").empty();
  } catch (const std::exception&) {
    return false;
  }
}

Checkpoint read_hugging_face(const fs::path& path) {
  Checkpoint checkpoint;
  checkpoint.format = "hf";
  checkpoint.path = path;
  const bool is_file = !leads_to_directory(path);
  const fs::path directory = !is_file                 ? path
                             : path.has_parent_path() ? path.parent_path()
                                                      : fs::path(".");
  if (!has_entry(directory, "config.json")) {
    // A pointer or a damaged file is worth more words than the missing config beside it.
    if (is_file) read_weights(path, checkpoint);
    throw_invalid((directory / "config.json").string(), "no such file",
                  "weights alone do not say what model they are; put its config.json there");
  }
  read_text(directory, "config.json", checkpoint);
  read_text(directory, "generation_config.json", checkpoint);
  if (is_file) {
    read_weights(path, checkpoint);
  } else {
    read_directory_weights(directory, checkpoint);
  }
  sort_by_name(checkpoint);
  if (checkpoint.tensors.empty()) throw_invalid(path.string(), "the weights hold no tensor");
  checkpoint.side_files = find_side_files(directory);
  return checkpoint;
}

}  // namespace llmctl::formats
