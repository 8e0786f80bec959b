#include "reshard/source_files.h"

#include <algorithm>

#include "formats/core/aligned_buffer.h"
#include "formats/core/error.h"
#include "formats/file_decoder.h"

namespace llmctl::reshard {

std::shared_ptr<const SourceFiles::Opened> SourceFiles::get(int index) {
  const std::lock_guard lock(mutex_);
  const auto it = open_.find(index);
  if (it != open_.end()) return it->second;
  constexpr size_t kMostOpen = 64;
  if (open_.size() >= kMostOpen) open_.clear();
  const auto& described = checkpoint_.files[static_cast<size_t>(index)];
  Opened opened{File::open_read(described.path), std::nullopt};
  if (opened.file.size_bytes() != described.size_bytes) {
    throw Error(ErrorCode::kEnvironment, "the file changed while it was in use",
                described.path.string(), "make sure that nothing else writes to it");
  }
  if (past_cache_) opened.direct = File::open_direct(described.path, Access::kRead);
  return open_[index] = std::make_shared<const Opened>(std::move(opened));
}

std::byte* SourceFiles::read(int file, uint64_t lo, uint64_t hi, std::byte* buffer) {
  constexpr uint64_t kPage = kDirectAlignment;
  const uint64_t start = lo / kPage * kPage;
  std::byte* at = buffer + (lo - start);
  if (const auto& decoder = checkpoint_.files[static_cast<size_t>(file)].decoder) {
    decoder->read_at({at, static_cast<size_t>(hi - lo)}, lo);
    return at;
  }
  const std::shared_ptr<const Opened> opened = get(file);
  if (!opened->direct) {
    opened->file.read_at({at, static_cast<size_t>(hi - lo)}, lo);
    if (past_cache_) opened->file.drop_cache(lo, hi - lo);
    return at;
  }
  // The last block of the file may be short: O_DIRECT then returns less than was asked for, and
  // only what is whole can be asked for.
  const uint64_t size = checkpoint_.files[static_cast<size_t>(file)].size_bytes;
  const uint64_t end = std::min((hi + kPage - 1) / kPage * kPage, size / kPage * kPage);
  if (end > start) {
    opened->direct->read_at({buffer, static_cast<size_t>(end - start)}, start);
  }
  const uint64_t rest = std::max(end, start);
  if (hi > rest) {
    opened->file.read_at({buffer + (rest - start), static_cast<size_t>(hi - rest)}, rest);
  }
  return at;
}

void SourceFiles::read_to(int file, uint64_t lo, std::span<std::byte> out) {
  if (const auto& decoder = checkpoint_.files[static_cast<size_t>(file)].decoder) {
    return decoder->read_at(out, lo);
  }
  const std::shared_ptr<const Opened> opened = get(file);
  opened->file.read_at(out, lo);
  if (past_cache_) opened->file.drop_cache(lo, out.size());
}

}  // namespace llmctl::reshard
