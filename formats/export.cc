#include "formats/export.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/directory.h"
#include "formats/json.h"
#include "formats/safetensors.h"
#include "formats/stranger.h"
#include "formats/zstd_file.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr uint64_t kMaxConfigBytes = uint64_t{64} << 20;
constexpr int64_t kMaxRanks = 1 << 20;
constexpr std::string_view kPadding = "padding.";
/// The data starts on a page.
constexpr uint64_t kHeaderAlignment = 4096;

constexpr std::array kLayouts = {std::pair{MatrixLayout::kRows, std::string_view("rows")},
                                 std::pair{MatrixLayout::kPanels16, std::string_view("panels16")}};

std::string in_quotes(const std::string& text) { return "'" + printable(text) + "'"; }

/// What model.json says about the files.
struct Description {
  int tp = 1, pp = 1;
  std::string id;
  MatrixLayout layout = MatrixLayout::kRows;
  std::vector<uint64_t> sizes;  ///< of the ranks' files, decompressed
  bool compressed = false;

  std::string file_name(int rank) const {
    return export_file_name(rank) + std::string(compressed ? kCompressedSuffix : "");
  }
};

class DescriptionReader {
 public:
  DescriptionReader(const std::string& text, std::string where)
      : where_(std::move(where)), json_(parse_json(text, where_)) {}

  Description read() const {
    const int64_t version = size("llmctl_export");
    if (version != kExportVersion && version != kQuantizedExportVersion) {
      throw_invalid(where_,
                    "an export of version " + std::to_string(version) + ", version " +
                        std::to_string(kExportVersion) + " or " +
                        std::to_string(kQuantizedExportVersion) + " expected",
                    "use the llmctl that wrote it, or export the model again");
    }
    if ((version == kQuantizedExportVersion) != json_.contains("quantization")) {
      refuse("version " + std::to_string(version) + " and 'quantization' do not go together");
    }
    Description result;
    result.tp = static_cast<int>(parallel_size("tensor_parallel_size"));
    result.pp = static_cast<int>(parallel_size("pipeline_parallel_size"));
    const int64_t ranks = int64_t{result.tp} * result.pp;
    if (ranks > kMaxRanks) refuse(std::to_string(ranks) + " ranks are more than there can be");
    result.id = text("id");
    result.layout = read_matrix_layout(text("matrix_layout"), where_);
    const Json& compression = get("compression");
    if (!compression.is_null() && compression != "zstd") {
      throw_invalid(where_, "unknown compression " + printable(compression.dump(), 60),
                    "use the llmctl that wrote it, or export the model again");
    }
    result.compressed = !compression.is_null();
    const Json& list = get("ranks");
    if (!list.is_array() || static_cast<int64_t>(list.size()) != ranks) {
      refuse("'ranks' must be a list of " + std::to_string(ranks) + " files, one per rank");
    }
    for (const Json& entry : list) {
      if (!entry.is_object() || !entry.contains("size")) refuse("a rank has no 'size'");
      result.sizes.push_back(static_cast<uint64_t>(get_size(entry["size"], where_, "size")));
    }
    return result;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw_invalid(where_, what, "the file is damaged; fetch it again");
  }
  const Json& get(const char* key) const {
    if (!json_.is_object()) refuse("an object is expected");
    const auto it = json_.find(key);
    if (it == json_.end()) refuse("'" + std::string(key) + "' is missing");
    return *it;
  }
  int64_t size(const char* key) const { return get_size(get(key), where_, key); }
  int64_t parallel_size(const char* key) const {
    const int64_t value = size(key);
    if (value < 1 || value > 65536) {
      refuse("'" + std::string(key) + "' is " + std::to_string(value) + ", 1 to 65536 expected");
    }
    return value;
  }
  std::string text(const char* key) const {
    const Json& value = get(key);
    if (!value.is_string()) refuse("'" + std::string(key) + "' is no text");
    return value.get<std::string>();
  }

  std::string where_;
  Json json_;
};

/// The number in "rank-00003.safetensors"; nothing for other names.
std::optional<int> rank_of_file(const std::string& name) {
  int rank = 0;
  if (std::sscanf(name.c_str(), "rank-%d", &rank) != 1 || rank < 0) return std::nullopt;
  const std::string expected = export_file_name(rank);
  const bool is_one = name == expected || name == expected + std::string(kCompressedSuffix);
  return is_one ? std::optional(rank) : std::nullopt;
}

void check_no_other_ranks(const fs::path& directory, const Description& description) {
  const auto ranks = static_cast<int>(description.sizes.size());
  for (const std::string& name : list_directory(directory)) {
    const std::optional<int> rank = rank_of_file(name);
    if (!rank || *rank < ranks) continue;
    throw_invalid((directory / name).string(),
                  "one rank too many: " + std::string(kExportConfig) + " is of an export for tp " +
                      std::to_string(description.tp) + " and pp " + std::to_string(description.pp),
                  "the files are not of one export; fetch or export it again");
  }
}

void check_metadata(const SafetensorsMetadata& metadata, const Description& description, int rank,
                    const fs::path& path) {
  const auto value = [&](const char* key) {
    const auto it = metadata.find(key);
    return it == metadata.end() ? std::string() : it->second;
  };
  if (value("llmctl_export") != description.id) {
    throw_invalid(path.string(), "the file belongs to another export than model.json",
                  "the files are not of one export; fetch or export it again");
  }
  if (value("rank") != std::to_string(rank)) {
    throw_invalid(path.string(),
                  "the file of rank " + printable(value("rank"), 20) + ", that of rank " +
                      std::to_string(rank) + " is expected",
                  "a file was renamed; fetch or export it again");
  }
}

void read_rank(const fs::path& directory, const Description& description, int rank,
               Checkpoint& checkpoint) {
  const std::string name = description.file_name(rank);
  if (!has_entry(directory, name)) {
    throw_invalid((directory / name).string(),
                  "missing: the export has " + std::to_string(description.sizes.size()) +
                      " such files, one per rank",
                  "fetch this file");
  }
  CheckpointFile file;
  file.path = resolve_inside(directory, name);
  file.size_bytes = File::open_read(file.path).size_bytes();
  if (description.compressed) file.decoder = std::make_shared<ZstdFile>(file.path);
  const uint64_t expected = description.sizes[static_cast<size_t>(rank)];
  const uint64_t size = file.decoder ? file.decoder->size_bytes() : file.size_bytes;
  if (size != expected) {
    throw_invalid(
        file.path.string(),
        std::to_string(expected) + " bytes expected, the file has " + std::to_string(size),
        size < expected ? "it is cut short; fetch it again" : "it is damaged; fetch it again");
  }
  const auto number = static_cast<int>(checkpoint.files.size());
  std::vector<StoredTensor> tensors;
  const SafetensorsMetadata metadata = read_safetensors(file, number, tensors);
  check_metadata(metadata, description, rank, file.path);
  checkpoint.files.push_back(std::move(file));
  for (StoredTensor& tensor : tensors) {
    if (tensor.name.starts_with(kPadding)) continue;
    tensor.tp_rank = rank % description.tp;
    tensor.pp_rank = rank / description.tp;
    checkpoint.tensors.push_back(std::move(tensor));
  }
}

void append_u64_le(std::string& out, uint64_t value) {
  for (int i = 0; i < 8; ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
}

/// The file of one rank: header, tensors, and zeros between them.
FilePlan place_rank(std::span<const TargetTensor> tensors, const std::vector<int>& members,
                    int rank, const ExportWriteOptions& options) {
  FilePlan plan;
  plan.name = export_file_name(rank);
  std::string header =
      R"({"__metadata__":)" + Json{{"format", "pt"},
                                   {"llmctl_export", options.id},
                                   {"rank", std::to_string(rank)},
                                   {"matrix_layout", matrix_layout_name(options.layout)}}
                                  .dump();
  uint64_t offset = 0;
  std::vector<std::pair<uint64_t, uint64_t>> gaps;  // offset and length
  const auto add = [&](const std::string& name, std::string_view dtype, const Shape& shape,
                       uint64_t bytes) {
    header += "," + Json(name).dump() + R"(:{"dtype":")" + std::string(dtype) + R"(","shape":)" +
              Json(shape).dump() + R"(,"data_offsets":[)" + std::to_string(offset) + "," +
              std::to_string(offset + bytes) + "]}";
    offset += bytes;
  };
  for (const int index : members) {
    const TargetTensor& tensor = tensors[static_cast<size_t>(index)];
    const auto bytes = checked_num_bytes(tensor.dtype, tensor.shape);
    if (!bytes) throw Error(ErrorCode::kInternal, "size overflows", "tensor " + tensor.name);
    plan.placements.push_back({index, offset});
    add(tensor.name, dtype_name(tensor.dtype), tensor.shape, *bytes);
    if (const uint64_t gap = -offset % kExportAlignment; gap != 0) {
      gaps.emplace_back(offset, gap);
      add(std::string(kPadding) + std::to_string(gaps.size() - 1), "U8",
          {static_cast<int64_t>(gap)}, gap);
    }
  }
  header += '}';
  header.resize(header.size() + -(header.size() + 8) % kHeaderAlignment, ' ');
  std::string literal;
  append_u64_le(literal, header.size());
  literal += header;
  const uint64_t start = literal.size();
  plan.size_bytes = start + offset;
  plan.literals.push_back({0, std::move(literal)});
  for (const auto& [at, length] : gaps) {
    plan.literals.push_back({start + at, std::string(length, '\0')});
  }
  for (Placement& placement : plan.placements) placement.offset_bytes += start;
  return plan;
}

}  // namespace

std::string_view matrix_layout_name(MatrixLayout layout) {
  for (const auto& [value, name] : kLayouts) {
    if (value == layout) return name;
  }
  return "";
}

MatrixLayout read_matrix_layout(const std::string& name, const std::string& where) {
  for (const auto& [value, known] : kLayouts) {
    if (known == name) return value;
  }
  throw_invalid(where, "unknown matrix layout " + in_quotes(name),
                "use the llmctl that wrote it, or export the model again");
}

std::string export_file_name(int rank) {
  char name[40];
  std::snprintf(name, sizeof name, "rank-%05d.safetensors", rank);
  return name;
}

bool detect_export(const fs::path& path) {
  try {
    const fs::path file = leads_to_directory(path) ? path / kExportConfig : path;
    if (file.filename() != kExportConfig || !leads_to_file(file)) return false;
    const File opened = File::open_read(file);
    std::array<char, 64> start{};
    const auto size = static_cast<size_t>(std::min<uint64_t>(start.size(), opened.size_bytes()));
    opened.read_at(std::as_writable_bytes(std::span(start).first(size)), 0);
    return std::string_view(start.data(), size).find("\"llmctl_export\"") != std::string_view::npos;
  } catch (const std::exception&) {
    return false;
  }
}

Checkpoint read_export(const fs::path& path) {
  const fs::path directory = leads_to_directory(path) ? path
                             : path.has_parent_path() ? path.parent_path()
                                                      : fs::path(".");
  Checkpoint checkpoint;
  checkpoint.format = "export";
  checkpoint.path = path;
  const fs::path config = resolve_inside(directory, kExportConfig);
  checkpoint.texts[kExportConfig] = read_text_file(config, kMaxConfigBytes);
  const Description description =
      DescriptionReader(checkpoint.texts[kExportConfig], config.string()).read();
  checkpoint.tensor_parallel_size = description.tp;
  checkpoint.pipeline_parallel_size = description.pp;
  check_no_other_ranks(directory, description);
  for (size_t rank = 0; rank < description.sizes.size(); ++rank) {
    read_rank(directory, description, static_cast<int>(rank), checkpoint);
  }
  const char* generation = "generation_config.json";
  if (has_entry(directory, generation)) {
    checkpoint.texts[generation] =
        read_text_file(resolve_inside(directory, generation), uint64_t{1} << 20);
  }
  checkpoint.side_files = find_side_files(directory);
  return checkpoint;
}

std::vector<FilePlan> place_export(std::span<const TargetTensor> tensors,
                                   const WriteOptions& options) {
  const ExportWriteOptions& exported = *options.exported;
  std::vector<std::vector<int>> members(static_cast<size_t>(exported.tp * exported.pp));
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int rank = tensors[i].pp_rank * exported.tp + tensors[i].tp_rank;
    members[static_cast<size_t>(rank)].push_back(static_cast<int>(i));
  }
  std::vector<FilePlan> plans;
  for (size_t rank = 0; rank < members.size(); ++rank) {
    plans.push_back(place_rank(tensors, members[rank], static_cast<int>(rank), exported));
  }
  return plans;
}

}  // namespace llmctl::formats
