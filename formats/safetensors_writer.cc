#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "formats/core/error.h"
#include "formats/safetensors.h"
#include "formats/safetensors_format.h"

namespace llmctl::formats {
namespace {

int sort_rank(DType dtype) {
  const auto found = std::find_if(kSafetensorsDTypes.begin(), kSafetensorsDTypes.end(),
                                  [&](const SafetensorsDType& f) { return f.dtype == dtype; });
  return static_cast<int>(found - kSafetensorsDTypes.begin());
}

std::string json_text(const std::string& text, bool ascii_only) {
  try {
    return nlohmann::json(text).dump(-1, ' ', ascii_only);
  } catch (const nlohmann::json::exception&) {
    throw_invalid("tensor " + in_quotes(text), "the name is not valid UTF-8");
  }
}

void append_u64_le(std::string& out, uint64_t value) {
  for (int i = 0; i < 8; ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
}

uint64_t target_bytes(const TargetTensor& tensor) {
  const auto bytes = checked_num_bytes(tensor.dtype, tensor.shape);
  if (!bytes)
    throw Error(ErrorCode::kInternal, "size overflows", "tensor " + in_quotes(tensor.name));
  return *bytes;
}

FilePlan place_file(std::string file_name, std::span<const TargetTensor> tensors,
                    std::vector<int> members) {
  std::sort(members.begin(), members.end(), [&](int a, int b) {
    const TargetTensor& x = tensors[static_cast<size_t>(a)];
    const TargetTensor& y = tensors[static_cast<size_t>(b)];
    const int rank_x = sort_rank(x.dtype), rank_y = sort_rank(y.dtype);
    return rank_x != rank_y ? rank_x > rank_y : x.name < y.name;
  });
  FilePlan plan;
  plan.name = std::move(file_name);
  std::string header = R"({"__metadata__":{"format":"pt"})";
  uint64_t offset = 0;
  for (const int index : members) {
    const TargetTensor& tensor = tensors[static_cast<size_t>(index)];
    const uint64_t bytes = target_bytes(tensor);
    header += ',' + json_text(tensor.name, false) + R"(:{"dtype":")" +
              std::string(dtype_name(tensor.dtype)) + R"(","shape":[)";
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
      header += (i == 0 ? "" : ",") + std::to_string(tensor.shape[i]);
    }
    header += R"(],"data_offsets":[)" + std::to_string(offset) + ',' +
              std::to_string(offset + bytes) + "]}";
    plan.placements.push_back({index, offset});
    offset += bytes;
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string literal;
  append_u64_le(literal, header.size());
  literal += header;
  if (header.size() > kMaxSafetensorsHeaderBytes) {
    throw_invalid(plan.name, "the header would pass the format's limit of 100,000,000 bytes",
                  "give a smaller --max-shard-size");
  }
  for (Placement& placement : plan.placements) placement.offset_bytes += literal.size();
  plan.size_bytes = literal.size() + offset;
  plan.literals.push_back({0, std::move(literal)});
  return plan;
}

/// Fills shards in the given order; a tensor above the limit stands alone. The same rule as
/// huggingface_hub's split_state_dict_into_shards_factory, its order of shards included.
std::vector<std::vector<int>> split_into_shards(std::span<const TargetTensor> tensors,
                                                uint64_t max_shard_bytes) {
  std::vector<std::vector<int>> shards;
  std::vector<int> current;
  uint64_t current_bytes = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const uint64_t bytes = target_bytes(tensors[i]);
    if (bytes > max_shard_bytes) {
      shards.push_back({static_cast<int>(i)});
      continue;
    }
    if (bytes > max_shard_bytes - current_bytes) {
      shards.push_back(std::exchange(current, {}));
      current_bytes = 0;
    }
    current.push_back(static_cast<int>(i));
    current_bytes += bytes;
  }
  if (!current.empty() || shards.empty()) shards.push_back(std::move(current));
  return shards;
}

std::string shard_name(size_t index, size_t count) {
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

/// As Python's json.dumps(index, indent=2, sort_keys=True) writes it.
FilePlan place_index(std::span<const TargetTensor> tensors,
                     const std::vector<std::vector<int>>& shards) {
  std::vector<std::pair<std::string_view, size_t>> shard_of;
  uint64_t total_size = 0;
  for (size_t s = 0; s < shards.size(); ++s) {
    for (const int index : shards[s]) {
      const TargetTensor& tensor = tensors[static_cast<size_t>(index)];
      shard_of.emplace_back(tensor.name, s);
      total_size += target_bytes(tensor);
    }
  }
  std::sort(shard_of.begin(), shard_of.end());
  std::string text = "{\n  \"metadata\": {\n    \"total_size\": " + std::to_string(total_size) +
                     "\n  },\n  \"weight_map\": {\n";
  for (size_t i = 0; i < shard_of.size(); ++i) {
    text += "    " + json_text(std::string(shard_of[i].first), true) + ": \"" +
            shard_name(shard_of[i].second, shards.size()) + '"' +
            (i + 1 < shard_of.size() ? ",\n" : "\n");
  }
  text += "  }\n}\n";
  FilePlan plan;
  plan.name = "model.safetensors.index.json";
  plan.size_bytes = text.size();
  plan.literals.push_back({0, std::move(text)});
  return plan;
}

void check_target_names(std::span<const TargetTensor> tensors) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const TargetTensor& tensor : tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) {
    throw Error(ErrorCode::kInternal, "two target tensors of that name",
                "tensor " + in_quotes(std::string(*twice)));
  }
  if (std::binary_search(names.begin(), names.end(), std::string_view("__metadata__"))) {
    throw_invalid("tensor '__metadata__'", "safetensors reserves this name");
  }
}

}  // namespace

std::vector<FilePlan> place_safetensors(std::span<const TargetTensor> tensors,
                                        const WriteOptions& options) {
  check_target_names(tensors);
  const auto shards = split_into_shards(tensors, options.max_shard_bytes);
  std::vector<FilePlan> plans;
  if (shards.size() == 1) {
    plans.push_back(place_file("model.safetensors", tensors, shards.front()));
    return plans;
  }
  for (size_t s = 0; s < shards.size(); ++s) {
    plans.push_back(place_file(shard_name(s, shards.size()), tensors, shards[s]));
  }
  plans.push_back(place_index(tensors, shards));
  return plans;
}

}  // namespace llmctl::formats
