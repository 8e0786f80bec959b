#include "formats/safetensors.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <utility>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/json_scanner.h"
#include "formats/stranger.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;

// The library's own limit.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
// Far above any real file; they bound what a hostile header of 100 MB can make us hold.
constexpr size_t kMaxTensors = size_t{1} << 18;
constexpr size_t kMaxNameBytes = 4096;
constexpr size_t kMaxRank = 64;

/// The library's dtype list in its sort order; files hold tensors in descending order of it.
/// Kinds without an enumerator are valid safetensors that llmctl does not read.
struct FileDType {
  std::string_view name;
  std::optional<DType> dtype;
};
constexpr std::array kFileDTypes = {
    FileDType{"BOOL", DType::BOOL},
    FileDType{"F4", std::nullopt},
    FileDType{"F6_E2M3", std::nullopt},
    FileDType{"F6_E3M2", std::nullopt},
    FileDType{"U8", DType::U8},
    FileDType{"I8", DType::I8},
    FileDType{"F8_E5M2", DType::F8_E5M2},
    FileDType{"F8_E4M3", DType::F8_E4M3},
    FileDType{"F8_E8M0", std::nullopt},
    FileDType{"F8_E4M3FNUZ", std::nullopt},
    FileDType{"F8_E5M2FNUZ", std::nullopt},
    FileDType{"I16", DType::I16},
    FileDType{"U16", DType::U16},
    FileDType{"F16", DType::F16},
    FileDType{"BF16", DType::BF16},
    FileDType{"I32", DType::I32},
    FileDType{"U32", DType::U32},
    FileDType{"F32", DType::F32},
    FileDType{"C64", std::nullopt},
    FileDType{"F64", DType::F64},
    FileDType{"I64", DType::I64},
    FileDType{"U64", DType::U64},
};

int sort_rank(DType dtype) {
  const auto found = std::find_if(kFileDTypes.begin(), kFileDTypes.end(),
                                  [&](const FileDType& f) { return f.dtype == dtype; });
  return static_cast<int>(found - kFileDTypes.begin());
}

std::string in_quotes(const std::string& name) { return "'" + printable(name) + "'"; }

std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

/// A tensor as the header describes it; offsets are relative to the data.
struct Entry {
  std::string name;
  DType dtype = DType::F32;
  Shape shape;
  uint64_t begin = 0;
  uint64_t end = 0;
};

class HeaderReader {
 public:
  HeaderReader(JsonScanner::Refill refill, std::string where)
      : where_(std::move(where)), json_(std::move(refill), where_) {}

  std::vector<Entry> read() {
    json_.enter_object();
    bool has_metadata = false;
    std::string name;
    while (json_.next_key(name, kMaxNameBytes)) {
      if (name == "__metadata__") {
        if (std::exchange(has_metadata, true)) throw_invalid(where_, "two '__metadata__' entries");
        read_metadata();
      } else {
        if (entries_.size() == kMaxTensors) {
          throw_invalid(where_, "more than " + std::to_string(kMaxTensors) + " tensors");
        }
        read_entry(std::move(name));
      }
    }
    json_.finish(false);
    return std::move(entries_);
  }

 private:
  void read_metadata() {
    json_.enter_object();
    std::vector<std::string> keys;
    std::string key;
    while (json_.next_key(key, kMaxNameBytes)) {
      if (keys.size() == kMaxTensors) throw_invalid(where_, "'__metadata__' has too many entries");
      keys.push_back(key);
      // Only the type matters: values are text, and nothing of them is kept.
      if (!json_.is_at_text()) {
        throw_invalid(where_, "'__metadata__' entry " + in_quotes(key) + " is not a text");
      }
      json_.skip_value();
    }
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) {
      throw_invalid(where_, "'__metadata__' has the entry " + in_quotes(*twice) + " twice");
    }
  }

  void read_entry(std::string name) {
    Entry entry;
    entry.name = std::move(name);
    bool has_dtype = false, has_shape = false, has_offsets = false;
    json_.enter_object();
    std::string key;
    while (json_.next_key(key, kMaxNameBytes)) {
      bool was_seen = false;
      if (key == "dtype") {
        was_seen = std::exchange(has_dtype, true);
        read_dtype(entry);
      } else if (key == "shape") {
        was_seen = std::exchange(has_shape, true);
        read_shape(entry);
      } else if (key == "data_offsets") {
        was_seen = std::exchange(has_offsets, true);
        read_offsets(entry);
      } else {
        refuse(entry, "unknown field " + in_quotes(key));
      }
      if (was_seen) refuse(entry, "field " + in_quotes(key) + " is given twice");
    }
    if (!has_dtype || !has_shape || !has_offsets) {
      refuse(entry, std::string("field '") +
                        (!has_dtype   ? "dtype"
                         : !has_shape ? "shape"
                                      : "data_offsets") +
                        "' is missing");
    }
    entries_.push_back(std::move(entry));
  }

  void read_dtype(Entry& entry) {
    const std::string name = json_.read_text(kMaxNameBytes);
    const auto found = std::find_if(kFileDTypes.begin(), kFileDTypes.end(),
                                    [&](const FileDType& f) { return f.name == name; });
    if (found == kFileDTypes.end()) refuse(entry, "unknown dtype " + in_quotes(name));
    if (!found->dtype) refuse(entry, "dtype " + name + " is not supported");
    entry.dtype = *found->dtype;
  }

  void read_shape(Entry& entry) {
    entry.shape.clear();
    json_.enter_array();
    while (json_.next_element()) {
      const uint64_t size = json_.read_size();
      if (size > INT64_MAX) refuse(entry, "an axis of " + std::to_string(size) + " elements");
      if (entry.shape.size() == kMaxRank) refuse(entry, "more than 64 axes");
      entry.shape.push_back(static_cast<int64_t>(size));
    }
  }

  void read_offsets(Entry& entry) {
    std::array<uint64_t, 2> offsets{};
    size_t count = 0;
    json_.enter_array();
    while (json_.next_element()) {
      if (count == offsets.size()) refuse(entry, "'data_offsets' must be two numbers");
      offsets[count++] = json_.read_size();
    }
    if (count != offsets.size()) refuse(entry, "'data_offsets' must be two numbers");
    entry.begin = offsets[0];
    entry.end = offsets[1];
  }

  [[noreturn]] void refuse(const Entry& entry, const std::string& what) const {
    throw_invalid(where_, "tensor " + in_quotes(entry.name) + ": " + what);
  }

  std::string where_;
  JsonScanner json_;
  std::vector<Entry> entries_;
};

void check_sizes(const std::vector<Entry>& entries, uint64_t data_bytes, const std::string& where) {
  for (const Entry& entry : entries) {
    const auto refuse = [&](const std::string& what) {
      throw_invalid(where, "tensor " + in_quotes(entry.name) + ": " + what,
                    "the file is damaged; fetch it again");
    };
    if (entry.end < entry.begin) {
      refuse("data ends at " + std::to_string(entry.end) + " before it begins at " +
             std::to_string(entry.begin));
    }
    const std::string type = std::string(dtype_name(entry.dtype)) + " " + shape_text(entry.shape);
    const auto expected = checked_num_bytes(entry.dtype, entry.shape);
    if (!expected) refuse("the size of " + type + " overflows");
    if (*expected != entry.end - entry.begin) {
      refuse(std::to_string(*expected) + " bytes expected for " + type + ", header says " +
             std::to_string(entry.end - entry.begin));
    }
    if (entry.end > data_bytes) {
      refuse("data ends at " + std::to_string(entry.end) + ", but the file holds " +
             std::to_string(data_bytes) + " bytes of data");
    }
  }
}

void check_names(const std::vector<Entry>& entries, const std::string& where) {
  std::vector<const std::string*> names;
  names.reserve(entries.size());
  for (const Entry& entry : entries) names.push_back(&entry.name);
  std::sort(names.begin(), names.end(), [](const auto* a, const auto* b) { return *a < *b; });
  const auto twice = std::adjacent_find(names.begin(), names.end(),
                                        [](const auto* a, const auto* b) { return *a == *b; });
  if (twice != names.end())
    throw_invalid(where, "tensor " + in_quotes(**twice) + " is listed twice");
}

/// Requires: entries in the order of their data. The data must be covered once and completely.
void check_coverage(const std::vector<Entry>& entries, uint64_t data_bytes,
                    const std::string& where) {
  uint64_t position = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != position) {
      throw_invalid(where, "tensor " + in_quotes(entry.name) + ": data begins at " +
                               std::to_string(entry.begin) +
                               " where the tensor before it ends at " + std::to_string(position) +
                               (entry.begin > position ? " (a hole)" : " (an overlap)"));
    }
    position = entry.end;
  }
  if (position != data_bytes) {
    throw_invalid(where, std::to_string(data_bytes - position) + " bytes follow the last tensor",
                  "the file is damaged; fetch it again");
  }
}

uint64_t read_u64_le(std::span<const std::byte, 8> bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | std::to_integer<uint64_t>(bytes[i]);
  return value;
}

/// The checked length of the header of a file of `size` bytes that starts with `prefix`.
uint64_t header_length(std::span<const std::byte, 8> prefix, uint64_t size,
                       const std::string& where) {
  const uint64_t length = read_u64_le(prefix);
  if (length > kMaxHeaderBytes) {
    throw_invalid(where,
                  "the first 8 bytes give a header of " + std::to_string(length) +
                      " bytes, more than the limit of " + std::to_string(kMaxHeaderBytes),
                  "the file is damaged or not a safetensors file");
  }
  if (length > size - 8) {
    throw_invalid(where,
                  "header of " + std::to_string(length) + " bytes expected, file has " +
                      std::to_string(size) + " bytes in all",
                  "the file is cut short; fetch it again");
  }
  return length;
}

void read_header(JsonScanner::Refill refill, uint64_t header_bytes, uint64_t size,
                 const std::string& where, int file, std::vector<StoredTensor>& out) {
  const uint64_t data_offset = 8 + header_bytes;
  const uint64_t data_bytes = size - data_offset;
  std::vector<Entry> entries = HeaderReader(std::move(refill), where).read();
  check_sizes(entries, data_bytes, where);
  check_names(entries, where);
  // The end breaks ties so that empty tensors come before the one that starts where they lie.
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  check_coverage(entries, data_bytes, where);
  for (Entry& entry : entries) {
    StoredTensor& tensor = out.emplace_back();
    tensor.name = std::move(entry.name);
    tensor.dtype = entry.dtype;
    tensor.shape = std::move(entry.shape);
    tensor.file = file;
    tensor.offset_bytes = data_offset + entry.begin;
  }
}

void check_first_byte(std::byte first, const std::string& where) {
  if (first != std::byte{'{'}) throw_invalid(where, "the header does not start with '{'");
}

// ---- writing -------------------------------------------------------------------------------

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
  if (header.size() > kMaxHeaderBytes) {
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

void parse_safetensors(std::span<const std::byte> bytes, const std::string& where, int file,
                       std::vector<StoredTensor>& out) {
  if (bytes.size() < 9) throw_invalid(where, "too short for a safetensors file");
  const uint64_t length = header_length(bytes.first<8>(), bytes.size(), where);
  std::span<const std::byte> header = bytes.subspan(8, static_cast<size_t>(length));
  if (header.empty()) throw_invalid(where, "the header is empty");
  check_first_byte(header.front(), where);
  read_header([&] { return std::exchange(header, {}); }, length, bytes.size(), where, file, out);
}

void read_safetensors(const fs::path& path, int file, std::vector<StoredTensor>& out) {
  const std::string where = path.string();
  const File source = File::open_read(path);
  const uint64_t size = source.size_bytes();
  std::array<std::byte, 9> prefix{};
  if (size >= prefix.size()) source.read_at(prefix, 0);
  if (prefix[8] != std::byte{'{'}) {
    // The start decides: a length may look like the signature of another format.
    if (const auto stranger = describe_stranger_file(path)) {
      throw_invalid(where, "expected a safetensors file, this is " + stranger->what,
                    stranger->hint);
    }
  }
  if (size < 9) throw_invalid(where, "too short for a safetensors file", "fetch it again");
  const uint64_t length = header_length(std::span(prefix).first<8>(), size, where);
  if (length == 0) throw_invalid(where, "the header is empty");
  check_first_byte(prefix[8], where);
  std::vector<std::byte> window(size_t{64} << 10);
  uint64_t done = 0;
  const auto refill = [&]() -> std::span<const std::byte> {
    const auto part = std::span(window).first(
        static_cast<size_t>(std::min<uint64_t>(window.size(), length - done)));
    if (!part.empty()) source.read_at(part, 8 + done);
    done += part.size();
    return part;
  };
  read_header(refill, length, size, where, file, out);
}

bool is_safetensors_file(const fs::path& path) {
  try {
    const File file = File::open_read(path);
    if (file.size_bytes() < 10) return false;
    std::array<std::byte, 9> prefix{};
    file.read_at(prefix, 0);
    return read_u64_le(std::span(prefix).first<8>()) <= kMaxHeaderBytes &&
           prefix[8] == std::byte{'{'};
  } catch (const std::exception&) {
    return false;
  }
}

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
