#include "formats/torch_writer.h"

#include <algorithm>
#include <utility>

#include "formats/core/checked.h"
#include "formats/core/error.h"
#include "formats/crc32.h"
#include "formats/pickle_writer.h"

namespace llmctl::formats {
namespace {

constexpr uint64_t kAlignment = 64;
// Large storages lie where direct I/O can move them without an extra copy.
constexpr uint64_t kDirectAlignment = 4096, kDirectBytes = uint64_t{64} << 10;
constexpr uint64_t kMax32 = 0xFFFFFFFF;
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 62;
// 1 January 1980, the first day that zip knows: a date would make equal input differ.
constexpr uint16_t kDate = 0x0021;
constexpr uint16_t kFlags = 0x0800;  // names are UTF-8

void put(std::string& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i));
}

/// Collects literals and the directory, entry by entry.
class ZipLayout {
 public:
  explicit ZipLayout(FilePlan& plan) : plan_(plan) {}

  void add_literal(const std::string& name, const std::string& payload) {
    const uint32_t crc = crc32(std::as_bytes(std::span(payload)));
    std::string header = begin_entry(name, payload.size(), crc);
    header += payload;
    add_bytes(std::move(header));
  }

  void add_storage(const std::string& name, const TorchStorage& storage) {
    const uint64_t header_offset = position_, directory_offset = directory_.size();
    add_bytes(begin_entry(name, storage.size_bytes, 0));
    plan_.placements.push_back({storage.tensor, position_});
    // Relative to the directory until `finish` knows where that begins.
    plan_.crc_patches.push_back({storage.tensor, header_offset + 14, directory_offset + 16});
    if (storage.size_bytes > kMaxFileBytes - position_) {
      throw_usage(plan_.name, "the tensors are too large for one file");
    }
    position_ += storage.size_bytes;
  }

  void finish() {
    const uint64_t start = position_, size = directory_.size();
    for (FilePlan::CrcPatch& patch : plan_.crc_patches) patch.directory_offset_bytes += start;
    std::string end = std::move(directory_);
    put(end, 0x06064b50, 4);  // zip64 end record
    put(end, 44, 8);          // bytes that follow
    put(end, 45, 2);
    put(end, 45, 2);
    put(end, 0, 8);
    put(end, count_, 8);
    put(end, count_, 8);
    put(end, size, 8);
    put(end, start, 8);
    put(end, 0x07064b50, 4);  // its locator
    put(end, 0, 4);
    put(end, start + size, 8);
    put(end, 1, 4);
    put(end, 0x06054b50, 4);  // classic end record
    put(end, 0, 4);
    const uint64_t count = std::min<uint64_t>(count_, 0xFFFF);
    put(end, count, 2);
    put(end, count, 2);
    put(end, std::min(size, kMax32), 4);
    put(end, std::min(start, kMax32), 4);
    put(end, 0, 2);
    add_bytes(std::move(end));
    plan_.size_bytes = position_;
  }

 private:
  /// Returns the local header, padded so that the payload is aligned, and adds the directory
  /// record.
  std::string begin_entry(const std::string& name, uint64_t size, uint32_t crc) {
    const uint64_t alignment = size >= kDirectBytes ? kDirectAlignment : kAlignment;
    const bool is_large = size >= kMax32, is_far = position_ >= kMax32;
    const auto put_common = [&](std::string& out, uint64_t extra_bytes) {
      put(out, is_large || is_far ? 45 : 20, 2);  // version needed
      put(out, kFlags, 2);
      put(out, 0, 2);  // stored
      put(out, 0, 2);  // time
      put(out, kDate, 2);
      put(out, crc, 4);
      put(out, is_large ? kMax32 : size, 4);
      put(out, is_large ? kMax32 : size, 4);
      put(out, name.size(), 2);
      put(out, extra_bytes, 2);
    };
    std::string zip64;
    if (is_large) {
      put(zip64, 0x0001, 2);
      put(zip64, 16, 2);
      put(zip64, size, 8);
      put(zip64, size, 8);
    }
    const uint64_t unpadded = position_ + 30 + name.size() + zip64.size() + 4;
    const uint64_t padding = (alignment - unpadded % alignment) % alignment;
    std::string local;
    put(local, 0x04034b50, 4);
    put_common(local, zip64.size() + 4 + padding);
    local += name;
    local += zip64;
    local += "FB";
    put(local, padding, 2);
    local.append(static_cast<size_t>(padding), 'Z');

    std::string extra;
    if (is_large || is_far) {
      put(extra, 0x0001, 2);
      put(extra, (is_large ? 16u : 0u) + (is_far ? 8u : 0u), 2);
      if (is_large) {
        put(extra, size, 8);
        put(extra, size, 8);
      }
      if (is_far) put(extra, position_, 8);
    }
    put(directory_, 0x02014b50, 4);
    put(directory_, 45, 2);  // made by
    put_common(directory_, extra.size());
    put(directory_, 0, 2);  // comment
    put(directory_, 0, 2);  // disk
    put(directory_, 0, 6);  // attributes
    put(directory_, is_far ? kMax32 : position_, 4);
    directory_ += name;
    directory_ += extra;
    ++count_;
    return local;
  }

  void add_bytes(std::string bytes) {
    auto& literals = plan_.literals;
    const uint64_t size = bytes.size();
    if (!literals.empty() &&
        literals.back().offset_bytes + literals.back().bytes.size() == position_) {
      literals.back().bytes += bytes;
    } else {
      literals.push_back({position_, std::move(bytes)});
    }
    position_ += size;
  }

  FilePlan& plan_;
  std::string directory_;
  uint64_t position_ = 0, count_ = 0;
};

}  // namespace

FilePlan place_torch_zip(const std::string& file_name, const std::string& pickle,
                         std::span<const TorchStorage> storages, const std::string& root) {
  if (root.empty() || root.size() > 1000 || root.find('/') != std::string::npos) {
    throw_usage(file_name, "'" + printable(root) + "' cannot be the root of an archive");
  }
  FilePlan plan;
  plan.name = file_name;
  ZipLayout layout(plan);
  layout.add_literal(root + "/data.pkl", pickle);
  layout.add_literal(root + "/byteorder", "little");
  for (size_t i = 0; i < storages.size(); ++i) {
    const std::string name = root + "/data/" + std::to_string(i);
    if (storages[i].tensor < 0) {
      layout.add_literal(name, storages[i].bytes);
    } else {
      layout.add_storage(name, storages[i]);
    }
  }
  layout.add_literal(root + "/version", "3\n");
  layout.finish();
  return plan;
}

FilePlan place_torch_state_dict(const std::string& file_name, std::span<const TargetTensor> tensors,
                                const std::string& root) {
  PickleWriter pickle;
  std::vector<TorchStorage> storages;
  pickle.begin_dict();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TargetTensor& tensor = tensors[i];
    pickle.text(tensor.name);
    pickle.tensor(tensor.dtype, tensor.shape, std::to_string(i));
    storages.push_back(
        {static_cast<int>(i), checked_num_bytes(tensor.dtype, tensor.shape).value(), {}});
  }
  pickle.end_dict();
  return place_torch_zip(file_name, pickle.finish(), storages, root);
}

}  // namespace llmctl::formats
