#include "formats/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <optional>
#include <utility>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/file_decoder.h"
#include "formats/json_scanner.h"
#include "formats/safetensors_format.h"
#include "formats/stranger.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;

// Far above any real file; they bound what a hostile header of 100 MB can make us hold.
constexpr size_t kMaxTensors = size_t{1} << 18;
constexpr size_t kMaxNameBytes = 4096;
constexpr size_t kMaxRank = 64;

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
  /// `metadata` receives the texts of that name; null: they are checked and left.
  HeaderReader(JsonScanner::Refill refill, std::string where, SafetensorsMetadata* metadata)
      : where_(std::move(where)), json_(std::move(refill), where_), metadata_(metadata) {}

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
      if (!json_.is_at_text()) {
        throw_invalid(where_, "'__metadata__' entry " + in_quotes(key) + " is not a text");
      }
      if (metadata_ == nullptr) {
        json_.skip_value();
      } else {
        (*metadata_)[key] = json_.read_text(kMaxNameBytes);
      }
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
    const auto found = std::find_if(kSafetensorsDTypes.begin(), kSafetensorsDTypes.end(),
                                    [&](const SafetensorsDType& f) { return f.name == name; });
    if (found == kSafetensorsDTypes.end()) refuse(entry, "unknown dtype " + in_quotes(name));
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
  SafetensorsMetadata* metadata_;
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
  if (length > kMaxSafetensorsHeaderBytes) {
    throw_invalid(where,
                  "the first 8 bytes give a header of " + std::to_string(length) +
                      " bytes, more than the limit of " +
                      std::to_string(kMaxSafetensorsHeaderBytes),
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
                 const std::string& where, int file, std::vector<StoredTensor>& out,
                 SafetensorsMetadata* metadata = nullptr) {
  const uint64_t data_offset = 8 + header_bytes;
  const uint64_t data_bytes = size - data_offset;
  std::vector<Entry> entries = HeaderReader(std::move(refill), where, metadata).read();
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

namespace {

using ReadAt = std::function<void(std::span<std::byte> out, uint64_t offset)>;

void read_from(const ReadAt& read_at, uint64_t size, const std::string& where, int file,
               std::vector<StoredTensor>& out, SafetensorsMetadata* metadata) {
  std::array<std::byte, 9> prefix{};
  if (size >= prefix.size()) read_at(prefix, 0);
  if (prefix[8] != std::byte{'{'}) {
    // The start decides: a length may look like the signature of another format.
    if (const auto stranger = describe_stranger_file(where)) {
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
    if (!part.empty()) read_at(part, 8 + done);
    done += part.size();
    return part;
  };
  read_header(refill, length, size, where, file, out, metadata);
}

}  // namespace

void read_safetensors(const fs::path& path, int file, std::vector<StoredTensor>& out) {
  const File source = File::open_read(path);
  read_from([&](auto bytes, uint64_t offset) { source.read_at(bytes, offset); },
            source.size_bytes(), path.string(), file, out, nullptr);
}

SafetensorsMetadata read_safetensors(const CheckpointFile& source, int file,
                                     std::vector<StoredTensor>& out) {
  SafetensorsMetadata metadata;
  const TensorFile opened(source);
  read_from([&](auto bytes, uint64_t offset) { opened.read_at(bytes, offset); },
            source.decoder ? source.decoder->size_bytes() : source.size_bytes, source.path.string(),
            file, out, &metadata);
  return metadata;
}

bool is_safetensors_file(const fs::path& path) {
  try {
    const File file = File::open_read(path);
    if (file.size_bytes() < 10) return false;
    std::array<std::byte, 9> prefix{};
    file.read_at(prefix, 0);
    return read_u64_le(std::span(prefix).first<8>()) <= kMaxSafetensorsHeaderBytes &&
           prefix[8] == std::byte{'{'};
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace llmctl::formats
