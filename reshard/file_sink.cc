#include "reshard/file_sink.h"

#include <fcntl.h>
#include <unistd.h>

#include <optional>
#include <string>

#include "formats/core/error.h"

namespace llmctl::reshard {

struct FileSink::Target {
  formats::FilePlan plan;
  std::mutex mutex;  // guards `file`
  std::optional<File> file;
  std::atomic<uint64_t> missing_bytes{0};
};

FileSink::FileSink(std::filesystem::path directory, std::vector<formats::FilePlan> files,
                   size_t num_tensors)
    : directory_(std::move(directory)), places_(num_tensors) {
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

File& FileSink::opened(Target& target) {
  const std::lock_guard lock(target.mutex);
  if (!target.file) {
    target.file.emplace(File::create(directory_ / target.plan.name));
    target.file->allocate(target.plan.size_bytes);
    for (const auto& literal : target.plan.literals) {
      target.file->write_at(std::as_bytes(std::span(literal.bytes)), literal.offset_bytes);
      target.missing_bytes -= literal.bytes.size();
    }
  }
  return *target.file;
}

void FileSink::complete(Target& target, uint64_t bytes) {
  if (target.missing_bytes.fetch_sub(bytes) != bytes) return;
  // Starting the write-back here spreads it over the run; `finish` waits for it.
  ::sync_file_range(target.file->descriptor(), 0, 0, SYNC_FILE_RANGE_WRITE);
  const std::lock_guard lock(target.mutex);
  target.file.reset();
}

void FileSink::write(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  Target& target = *targets_[places_[tensor].file];
  opened(target).write_at(bytes, places_[tensor].offset_bytes + offset_bytes);
  complete(target, bytes.size());
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
