#include "reshard/file_sink.h"

#include <fcntl.h>
#include <unistd.h>

#include <string>

#include "formats/core/error.h"

namespace llmctl::reshard {

struct FileSink::Target {
  formats::FilePlan plan;
  std::mutex mutex;  // guards `file`
  std::shared_ptr<File> file;
  std::atomic<uint64_t> missing_bytes{0};
};

FileSink::FileSink(std::filesystem::path directory, std::vector<formats::FilePlan> files,
                   size_t num_tensors, bool leave_page_cache)
    : directory_(std::move(directory)), places_(num_tensors), leave_page_cache_(leave_page_cache) {
  for (formats::FilePlan& plan : files) {
    auto target = std::make_unique<Target>();
    target->missing_bytes = plan.size_bytes;
    for (const formats::Placement& placement : plan.placements) {
      places_[static_cast<size_t>(placement.tensor)] = {targets_.size(), placement.offset_bytes};
    }
    target->plan = std::move(plan);
    targets_.push_back(std::move(target));
  }
}

FileSink::~FileSink() = default;

std::shared_ptr<File> FileSink::opened(Target& target) {
  const std::lock_guard lock(target.mutex);
  if (!target.file) {
    target.file = std::make_shared<File>(File::create(directory_ / target.plan.name));
    target.file->allocate(target.plan.size_bytes);
    for (const auto& literal : target.plan.literals) {
      target.file->write_at(std::as_bytes(std::span(literal.bytes)), literal.offset_bytes);
      target.missing_bytes -= literal.bytes.size();
    }
  }
  return target.file;
}

/// Starts the write-back of a range at once, which spreads it over the run, and waits for the
/// oldest one when much is on the way.
void FileSink::pass_on(std::shared_ptr<File> file, uint64_t offset_bytes, uint64_t size_bytes) {
  constexpr uint64_t kMostOnTheWay = uint64_t{64} << 20;
  file->start_writing(offset_bytes, size_bytes, false);
  if (!leave_page_cache_) return;
  std::vector<Written> oldest;
  {
    const std::lock_guard lock(mutex_);
    on_the_way_.push_back({std::move(file), offset_bytes, size_bytes});
    bytes_on_the_way_ += size_bytes;
    while (bytes_on_the_way_ > kMostOnTheWay) {
      bytes_on_the_way_ -= on_the_way_.front().size_bytes;
      oldest.push_back(std::move(on_the_way_.front()));
      on_the_way_.pop_front();
    }
  }
  for (const Written& written : oldest) {
    written.file->start_writing(written.offset_bytes, written.size_bytes, true);
    written.file->drop_cache(written.offset_bytes, written.size_bytes);
  }
}

void FileSink::write(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  Target& target = *targets_[places_[tensor].file];
  std::shared_ptr<File> file = opened(target);
  const uint64_t at = places_[tensor].offset_bytes + offset_bytes;
  file->write_at(bytes, at);
  if (target.missing_bytes.fetch_sub(bytes.size()) == bytes.size()) {
    const std::lock_guard lock(target.mutex);
    target.file.reset();
  }
  pass_on(std::move(file), at, bytes.size());
}

void FileSink::finish() {
  for (const std::unique_ptr<Target>& target : targets_) {
    if (target->plan.placements.empty() || target->plan.size_bytes == 0 ||
        target->missing_bytes.load() > 0) {
      opened(*target);
    }
    if (target->missing_bytes.load() != 0) {
      throw Error(ErrorCode::kInternal,
                  std::to_string(target->missing_bytes.load()) + " bytes were never written",
                  target->plan.name);
    }
    target->file.reset();
  }
  on_the_way_.clear();
  const int descriptor = ::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw_errno(directory_.string(), "cannot open directory");
  // One call for all files: an fsync for each would wait for the journal thousands of times.
  const int result = ::syncfs(descriptor);
  const int saved = errno;
  ::close(descriptor);
  errno = saved;
  if (result != 0) throw_errno(directory_.string(), "cannot write to the disk");
}

}  // namespace llmctl::reshard
