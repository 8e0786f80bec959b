#include "reshard/file_sink.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <unordered_map>

#include "formats/core/aligned_buffer.h"
#include "formats/core/error.h"
#include "formats/core/message.h"
#include "formats/crc32.h"

namespace llmctl::reshard {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kPage = BlockDigest::kBlockBytes;
/// Files open at a time, each with up to two descriptors, and as many on their way to the disk: the
/// sum stays below the 256 that some systems allow a process.
constexpr size_t kMostOpen = 64;
/// Incomplete pages in memory, 8 MiB of them; what is beyond goes to the file in fragments.
constexpr size_t kMostHeldPages = 2048;
/// With more files than this one sync of the file system is cheaper than one for each.
constexpr size_t kManyFiles = 256;

bool takes_direct_writes(const fs::path& directory) {
  const fs::path path = directory / (".llmctl-probe-" + std::to_string(::getpid()));
  const int descriptor =
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0600);
  if (descriptor < 0) {
    // Some file systems create the file and then refuse the flag.
    ::unlink(path.c_str());
    return false;
  }
  AlignedBuffer block(kDirectAlignment);
  const bool taken =
      ::pwrite(descriptor, block.data(), block.size(), 0) == static_cast<ssize_t>(block.size());
  ::close(descriptor);
  ::unlink(path.c_str());
  return taken;
}

void sync_path(const fs::path& path, int (*sync)(int)) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw_errno(path.string(), "cannot open directory");
  const int result = sync(descriptor);
  const int saved = errno;
  ::close(descriptor);
  errno = saved;
  if (result != 0 && saved != EINVAL) throw_errno(path.string(), "cannot write to the disk");
}

}  // namespace

std::string_view write_mode_name(WriteMode mode) {
  switch (mode) {
    case WriteMode::kDirect:
      return "O_DIRECT";
    case WriteMode::kWindowed:
      return "buffered in windows";
    case WriteMode::kCached:
      break;
  }
  return "buffered";
}

WriteMode choose_write_mode(const fs::path& directory, bool large) {
  if (!large) return WriteMode::kCached;
  return takes_direct_writes(directory) ? WriteMode::kDirect : WriteMode::kWindowed;
}

struct FileSink::Opened {
  File file;
  std::optional<File> direct;
};

struct FileSink::Target {
  formats::FilePlan plan;
  std::atomic<uint64_t> missing_tensor_bytes{0};
  std::mutex mutex;  // guards what follows
  uint64_t missing_bytes = 0;
  bool complete = false;
  BlockDigest digest;
  struct Page {
    uint32_t filled = 0;                ///< bytes that are there
    std::unique_ptr<std::byte[]> data;  ///< null: they are in the file
    /// Where in `data`; the rest of the page may be another process's.
    std::map<uint32_t, uint32_t> ranges;  // begin to end

    void add_range(uint32_t begin, uint32_t end) {
      const auto next = ranges.find(end);
      if (next != ranges.end()) {
        end = next->second;
        ranges.erase(next);
      }
      auto behind = ranges.upper_bound(begin);
      if (behind != ranges.begin() && std::prev(behind)->second == begin) {
        std::prev(behind)->second = end;
      } else {
        ranges[begin] = end;
      }
    }
  };
  std::unordered_map<uint64_t, Page> pages;
  /// CRC-32s of stretches of tensors that a patch wants: by tensor, then offset.
  struct Stretch {
    uint64_t size_bytes;
    uint32_t crc;
  };
  std::map<size_t, std::map<uint64_t, Stretch>> crcs;

  uint64_t page_size(uint64_t page) const {
    return std::min<uint64_t>(kPage, plan.size_bytes - page * kPage);
  }
};

FileSink::FileSink(fs::path directory, std::vector<formats::FilePlan> files, size_t num_tensors,
                   bool leave_page_cache)
    : FileSink(directory, std::move(files), num_tensors,
               choose_write_mode(directory, leave_page_cache)) {}

FileSink::FileSink(fs::path directory, std::vector<formats::FilePlan> files, size_t num_tensors,
                   WriteMode mode, Existing existing)
    : directory_(std::move(directory)), mode_(mode), places_(num_tensors) {
  shares_ = mode != WriteMode::kCached;
  std::set<fs::path> folders;
  for (formats::FilePlan& plan : files) {
    auto target = std::make_unique<Target>();
    uint64_t literal_bytes = 0;
    for (const auto& literal : plan.literals) literal_bytes += literal.bytes.size();
    target->missing_bytes = plan.size_bytes;
    target->missing_tensor_bytes = plan.size_bytes - std::min(plan.size_bytes, literal_bytes);
    for (const formats::Placement& placement : plan.placements) {
      places_[static_cast<size_t>(placement.tensor)] = {targets_.size(), placement.offset_bytes};
    }
    for (const auto& patch : plan.crc_patches) {
      target->crcs[static_cast<size_t>(patch.tensor)];
    }
    const fs::path folder = fs::path(plan.name).parent_path();
    if (existing != Existing::kShare && !folder.empty() && folders.insert(folder).second) {
      std::error_code ec;
      fs::create_directories(directory_ / folder, ec);
      if (ec) {
        throw Error(ErrorCode::kEnvironment, "cannot make directory: " + ec.message(),
                    (directory_ / folder).string());
      }
    }
    target->plan = std::move(plan);
    targets_.push_back(std::move(target));
  }
  for (const auto& target : targets_) create(*target, existing);
}

FileSink::~FileSink() = default;

void FileSink::create(Target& target, Existing existing) {
  if (existing == Existing::kShare) return;
  if (existing == Existing::kWriteOn) {
    const fs::path path = directory_ / target.plan.name;
    std::error_code ec;
    if (fs::is_regular_file(fs::symlink_status(path, ec)) &&
        File::open_read(path).size_bytes() == target.plan.size_bytes) {
      return;
    }
    fs::remove(path, ec);
  }
  File file = File::create(directory_ / target.plan.name);
  file.allocate(target.plan.size_bytes);
}

std::shared_ptr<FileSink::Opened> FileSink::opened(Target& target) {
  const std::lock_guard lock(open_mutex_);
  for (auto it = open_.begin(); it != open_.end(); ++it) {
    if (it->first != &target) continue;
    open_.splice(open_.begin(), open_, it);
    return it->second;
  }
  const fs::path path = directory_ / target.plan.name;
  auto file = std::make_shared<Opened>(Opened{File::open_write(path), std::nullopt});
  if (mode_ == WriteMode::kDirect && target.plan.size_bytes >= kPage) {
    file->direct = File::open_direct(path, Access::kReadWrite);
  }
  open_.emplace_front(&target, file);
  if (open_.size() > kMostOpen) open_.pop_back();
  return file;
}

std::optional<size_t> FileSink::phase(size_t tensor, uint64_t offset_bytes) {
  if (mode_ != WriteMode::kDirect) return std::nullopt;
  return static_cast<size_t>((places_[tensor].offset_bytes + offset_bytes) % kPage);
}

/// Starts the write-back of a range at once, which spreads it over the run, and waits for the
/// oldest one when much is on the way.
void FileSink::pass_on(std::shared_ptr<Opened> file, uint64_t offset_bytes, uint64_t size_bytes) {
  constexpr uint64_t kMostOnTheWay = uint64_t{64} << 20;
  file->file.start_writing(offset_bytes, size_bytes, false);
  if (mode_ == WriteMode::kCached) return;
  std::vector<Written> oldest;
  {
    const std::lock_guard lock(way_mutex_);
    on_the_way_.push_back({std::move(file), offset_bytes, size_bytes});
    bytes_on_the_way_ += size_bytes;
    // Each range holds its file open.
    while (bytes_on_the_way_ > kMostOnTheWay || on_the_way_.size() > kMostOpen) {
      bytes_on_the_way_ -= on_the_way_.front().size_bytes;
      oldest.push_back(std::move(on_the_way_.front()));
      on_the_way_.pop_front();
    }
  }
  for (const Written& written : oldest) {
    written.file->file.start_writing(written.offset_bytes, written.size_bytes, true);
    written.file->file.drop_cache(written.offset_bytes, written.size_bytes);
  }
}

void FileSink::add_crc(Target& target, size_t tensor, uint64_t offset,
                       std::span<const std::byte> bytes) {
  if (target.crcs.find(tensor) == target.crcs.end()) return;
  const uint32_t crc = formats::crc32(bytes);
  const std::lock_guard lock(target.mutex);
  merge_crc(target, tensor, offset, bytes.size(), crc);
}

void FileSink::merge_crc(Target& target, size_t tensor, uint64_t offset, uint64_t size_bytes,
                         uint32_t crc) {
  const Target::Stretch stretch{size_bytes, crc};
  std::map<uint64_t, Target::Stretch>& known = target.crcs[tensor];
  auto it = known.emplace(offset, stretch).first;
  // Neighbours become one, so that the list stays short.
  const auto next = std::next(it);
  if (next != known.end() && offset + stretch.size_bytes == next->first) {
    it->second.crc =
        formats::combine_crc32(it->second.crc, next->second.crc, next->second.size_bytes);
    it->second.size_bytes += next->second.size_bytes;
    known.erase(next);
  }
  if (it == known.begin()) return;
  const auto before = std::prev(it);
  if (before->first + before->second.size_bytes == offset) {
    before->second.crc =
        formats::combine_crc32(before->second.crc, it->second.crc, it->second.size_bytes);
    before->second.size_bytes += it->second.size_bytes;
    known.erase(it);
  }
}

void FileSink::write(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes) {
  take(tensor, offset_bytes, bytes, false);
}

void FileSink::write_unchanged(size_t tensor, uint64_t offset_bytes,
                               std::span<const std::byte> bytes, const Origin& origin) {
  take(tensor, offset_bytes, bytes, false, shares_.load() ? &origin : nullptr);
}

/// False where that cannot be, and from then on it is not tried again.
bool FileSink::share_blocks(Opened& file, uint64_t offset, uint64_t size_bytes,
                            const Origin& origin) {
  file_clone_range range{};
  range.src_fd = origin.descriptor;
  range.src_offset = origin.offset_bytes;
  range.src_length = size_bytes;
  range.dest_offset = offset;
  if (::ioctl(file.file.descriptor(), FICLONERANGE, &range) != 0) {
    shares_ = false;
    return false;
  }
  shared_bytes_ += size_bytes;
  return true;
}

void FileSink::adopt(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes) {
  take(tensor, offset_bytes, bytes, true);
}

void FileSink::write_fragments() {
  for (const std::unique_ptr<Target>& target : targets_) {
    {
      const std::lock_guard lock(target->mutex);
      if (target->pages.empty()) continue;
    }
    const std::shared_ptr<Opened> file = opened(*target);
    const std::lock_guard lock(target->mutex);
    for (const auto& [page, held] : target->pages) {
      if (!held.data) continue;
      for (const auto& [begin, end] : held.ranges) {
        file->file.write_at({held.data.get() + begin, end - begin}, page * kPage + begin);
      }
    }
  }
}

void FileSink::write_ahead(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes) {
  opened(*targets_[places_[tensor].file])
      ->file.write_at(bytes, places_[tensor].offset_bytes + offset_bytes);
}

void FileSink::take(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes,
                    bool on_disk, const Origin* origin) {
  if (bytes.empty()) return;
  Target& target = *targets_[places_[tensor].file];
  add_crc(target, tensor, offset_bytes, bytes);
  const std::shared_ptr<Opened> file = opened(target);
  const uint64_t at = places_[tensor].offset_bytes + offset_bytes;
  put(target, *file, at, bytes, on_disk, origin);
  if (mode_ != WriteMode::kDirect && !on_disk) pass_on(file, at, bytes.size());
  count_written(target, *file, bytes.size());
}

/// Whole pages go to the file at once; the fragments at both ends meet their neighbours in memory.
void FileSink::put(Target& target, Opened& file, uint64_t offset, std::span<const std::byte> bytes,
                   bool on_disk, const Origin* origin) {
  const uint64_t end = offset + bytes.size();
  const uint64_t first = (offset + kPage - 1) / kPage * kPage;
  // A short last page of the file is whole too, though not for O_DIRECT.
  const uint64_t last = end == target.plan.size_bytes && !file.direct ? end : end / kPage * kPage;
  if (first >= last) {
    const uint64_t cut = std::clamp(first, offset, end);
    if (cut > offset) put_fragment(target, file, offset, bytes.first(cut - offset));
    if (end > cut) put_fragment(target, file, cut, bytes.subspan(cut - offset));
    return;
  }
  const auto middle = bytes.subspan(first - offset, last - first);
  BlockDigest digest;
  digest.add(first / kPage, middle);
  const bool fits = reinterpret_cast<uintptr_t>(middle.data()) % kDirectAlignment == 0;
  const bool shared = origin != nullptr && middle.size() % kPage == 0 &&
                      (origin->offset_bytes + (first - offset)) % kPage == 0 &&
                      share_blocks(file, first, middle.size(),
                                   {origin->descriptor, origin->offset_bytes + (first - offset)});
  if (!on_disk && !shared) (file.direct && fits ? *file.direct : file.file).write_at(middle, first);
  {
    const std::lock_guard lock(target.mutex);
    target.digest.merge(digest);
    target.missing_bytes -= middle.size();
  }
  if (first > offset) put_fragment(target, file, offset, bytes.first(first - offset));
  if (end > last) put_fragment(target, file, last, bytes.subspan(last - offset));
}

/// Part of one page. The page is written and digested when its last byte has come.
void FileSink::put_fragment(Target& target, Opened& file, uint64_t offset,
                            std::span<const std::byte> bytes) {
  const uint64_t page = offset / kPage;
  std::unique_ptr<std::byte[]> whole;
  const uint64_t size = target.page_size(page);
  {
    const std::lock_guard lock(target.mutex);
    Target::Page& held = target.pages[page];
    if (held.filled == 0 && held_pages_.load() < kMostHeldPages) {
      held.data = std::make_unique<std::byte[]>(kPage);
      ++held_pages_;
    }
    if (held.data) {
      const auto begin = static_cast<uint32_t>(offset % kPage);
      std::memcpy(held.data.get() + begin, bytes.data(), bytes.size());
      held.add_range(begin, begin + static_cast<uint32_t>(bytes.size()));
    } else {
      file.file.write_at(bytes, offset);
    }
    held.filled += static_cast<uint32_t>(bytes.size());
    target.missing_bytes -= bytes.size();
    if (!held.data || held.filled < size) return;
    whole = std::move(held.data);
    target.pages.erase(page);
    --held_pages_;
  }
  const std::span<const std::byte> data(whole.get(), static_cast<size_t>(size));
  file.file.write_at(data, page * kPage);
  BlockDigest digest;
  digest.add(page, data);
  const std::lock_guard lock(target.mutex);
  target.digest.merge(digest);
}

void FileSink::count_written(Target& target, Opened& file, uint64_t bytes) {
  if (target.missing_tensor_bytes.fetch_sub(bytes) == bytes) complete(target, file);
}

/// Writes the literals, whose CRC-32s are known by now, and reads back the pages that were too many
/// to be held.
void FileSink::complete(Target& target, Opened& file) {
  const auto patch = [&](uint64_t offset, uint32_t crc) {
    for (auto& literal : target.plan.literals) {
      if (offset < literal.offset_bytes || offset - literal.offset_bytes >= literal.bytes.size()) {
        continue;
      }
      const uint64_t at = offset - literal.offset_bytes;
      if (literal.bytes.size() - at < 4) break;
      for (size_t i = 0; i < 4; ++i) literal.bytes[at + i] = static_cast<char>(crc >> 8 * i & 255);
      return;
    }
    throw Error(ErrorCode::kInternal, "a checksum lies outside the literals", target.plan.name);
  };
  for (const auto& wanted : target.plan.crc_patches) {
    const auto& stretches = target.crcs[static_cast<size_t>(wanted.tensor)];
    const uint32_t crc = stretches.empty() ? 0 : stretches.begin()->second.crc;
    patch(wanted.local_offset_bytes, crc);
    patch(wanted.directory_offset_bytes, crc);
  }
  for (const auto& literal : target.plan.literals) {
    if (literal.bytes.empty()) continue;
    put(target, file, literal.offset_bytes, std::as_bytes(std::span(literal.bytes)));
  }
  const std::lock_guard lock(target.mutex);
  if (target.missing_bytes != 0) {
    throw Error(ErrorCode::kInternal,
                std::to_string(target.missing_bytes) + " bytes were never written",
                target.plan.name);
  }
  alignas(kDirectAlignment) std::byte block[kPage];
  for (const auto& [page, held] : target.pages) {
    const std::span<std::byte> data(block, static_cast<size_t>(target.page_size(page)));
    file.file.read_at(data, page * kPage);
    target.digest.add(page, data);
  }
  target.pages.clear();
  target.complete = true;
  if (targets_.size() <= kManyFiles) file.file.sync();
  if (mode_ != WriteMode::kCached) file.file.drop_cache(0, target.plan.size_bytes);
  {
    const std::lock_guard open_lock(open_mutex_);
    open_.remove_if([&](const auto& entry) { return entry.first == &target; });
  }
  if (on_complete) {
    const auto it = std::find_if(targets_.begin(), targets_.end(),
                                 [&](const auto& other) { return other.get() == &target; });
    on_complete(static_cast<size_t>(it - targets_.begin()));
  }
}

/// What another process's bytes share a page with goes to the file.
void FileSink::drop_fragments(Target& target) {
  const std::shared_ptr<Opened> file = opened(target);
  for (auto& [page, held] : target.pages) {
    if (!held.data) continue;
    for (const auto& [begin, end] : held.ranges) {
      file->file.write_at({held.data.get() + begin, end - begin}, page * kPage + begin);
    }
    held.data.reset();
    --held_pages_;
  }
}

std::string FileSink::hand_over() {
  MessageWriter state;
  bool has_written = false;
  for (size_t i = 0; i < targets_.size(); ++i) {
    Target& target = *targets_[i];
    const std::lock_guard lock(target.mutex);
    if (target.missing_bytes == target.plan.size_bytes) continue;
    has_written = true;
    if (!target.complete) {
      drop_fragments(target);
      if (targets_.size() <= kManyFiles) opened(target)->file.sync();
    }
    state.number(i);
    state.number(target.complete ? 1 : 0);
    state.number(target.missing_bytes);
    state.number(target.missing_tensor_bytes.load());
    state.number(target.digest.high());
    state.number(target.digest.low());
    state.number(target.pages.size());
    for (const auto& [page, held] : target.pages) {
      state.number(page);
      state.number(held.filled);
    }
    uint64_t num_stretches = 0;
    for (const auto& [tensor, stretches] : target.crcs) num_stretches += stretches.size();
    state.number(num_stretches);
    for (const auto& [tensor, stretches] : target.crcs) {
      for (const auto& [offset, stretch] : stretches) {
        state.number(tensor);
        state.number(offset);
        state.number(stretch.size_bytes);
        state.number(stretch.crc);
      }
    }
  }
  on_the_way_.clear();
  open_.clear();
  if (has_written && targets_.size() > kManyFiles) sync_path(directory_, ::syncfs);
  return state.bytes();
}

void FileSink::take_over(std::string_view state) {
  for (MessageReader reader(state); !reader.is_at_end();) {
    Target& target = *targets_.at(static_cast<size_t>(reader.number()));
    const std::lock_guard lock(target.mutex);
    target.complete = reader.number() != 0;
    target.missing_bytes -= target.plan.size_bytes - reader.number();
    uint64_t literal_bytes = 0;
    for (const auto& literal : target.plan.literals) literal_bytes += literal.bytes.size();
    target.missing_tensor_bytes -=
        target.plan.size_bytes - std::min(target.plan.size_bytes, literal_bytes) - reader.number();
    const uint64_t high = reader.number(), low = reader.number();
    target.digest.merge(BlockDigest::of_halves(high, low));
    const uint64_t num_pages = reader.number();
    // The pages that both sides have a part of are in the file on both.
    if (num_pages > 0) {
      drop_fragments(target);
      // On a shared file system this host's cache does not see what another host has written.
      const std::shared_ptr<Opened> file = opened(target);
      file->file.sync_data();
      file->file.drop_cache(0, target.plan.size_bytes);
    }
    for (uint64_t i = 0; i < num_pages; ++i) {
      const uint64_t page = reader.number();
      target.pages[page].filled += static_cast<uint32_t>(reader.number());
    }
    const uint64_t num_stretches = reader.number();
    for (uint64_t i = 0; i < num_stretches; ++i) {
      const auto tensor = static_cast<size_t>(reader.number());
      const uint64_t offset = reader.number(), size_bytes = reader.number();
      merge_crc(target, tensor, offset, size_bytes, static_cast<uint32_t>(reader.number()));
    }
  }
}

void FileSink::finish() {
  std::set<fs::path> folders = {directory_};
  for (const std::unique_ptr<Target>& target : targets_) {
    if (!target->complete) {
      if (target->missing_tensor_bytes.load() != 0) {
        throw Error(
            ErrorCode::kInternal,
            std::to_string(target->missing_tensor_bytes.load()) + " bytes were never written",
            target->plan.name);
      }
      complete(*target, *opened(*target));
    }
    for (fs::path folder = fs::path(target->plan.name).parent_path(); !folder.empty();
         folder = folder.parent_path()) {
      folders.insert(directory_ / folder);
    }
  }
  on_the_way_.clear();
  if (targets_.size() > kManyFiles) {
    sync_path(directory_, ::syncfs);
  } else {
    for (const fs::path& folder : folders) sync_path(folder, ::fsync);
  }
}

std::vector<FileDigest> FileSink::digests() const {
  std::vector<FileDigest> digests;
  for (const auto& target : targets_) {
    digests.push_back({target->plan.name, target->plan.size_bytes, target->digest.hex()});
  }
  return digests;
}

}  // namespace llmctl::reshard
