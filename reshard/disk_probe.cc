#include "reshard/disk_probe.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <optional>
#include <vector>

#include "formats/core/aligned_buffer.h"
#include "formats/core/cancel.h"
#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/core/thread_pool.h"

namespace llmctl::reshard {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr uint64_t kSlab = uint64_t{4} << 20;
constexpr uint64_t kFileBytes = uint64_t{256} << 20;
/// The rate is looked at this often; the slowest and the fastest stretch give the range.
constexpr int kStretches = 5;

/// A file that goes when the probe ends, however it ends.
class TemporaryFile {
 public:
  explicit TemporaryFile(const fs::path& directory)
      : path_(directory / (".llmctl-probe-" + std::to_string(::getpid()) + "-data")),
        file_(File::create(path_)) {}
  ~TemporaryFile() { ::unlink(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const fs::path& path() const { return path_; }
  File& file() { return file_; }

 private:
  fs::path path_;
  File file_;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

DiskRate probe_disk(const fs::path& source, const fs::path& target_directory, double seconds,
                    int jobs) {
  DiskRate rate;
  rate.mode = choose_write_mode(target_directory, true);
  const File from = File::open_read(source);
  const uint64_t size = from.size_bytes() / kDirectAlignment * kDirectAlignment;
  if (size == 0) throw_invalid(source.string(), "too small to measure with");
  const std::optional<File> from_direct = File::open_direct(source, Access::kRead);
  TemporaryFile temporary(target_directory);
  temporary.file().allocate(kFileBytes);
  std::optional<File> to_direct;
  if (rate.mode == WriteMode::kDirect) {
    to_direct = File::open_direct(temporary.path(), Access::kReadWrite);
  }

  const uint64_t slab = std::min(kSlab, size);
  std::atomic<uint64_t> next{0};
  std::atomic<uint64_t> moved[kStretches] = {};
  ThreadPool pool(std::max(2, jobs));
  std::vector<AlignedBuffer> buffers;
  for (int i = 0; i < pool.num_threads(); ++i) buffers.emplace_back(kSlab);
  const Clock::time_point start = Clock::now();
  pool.parallel_for(pool.num_threads(), [&](int64_t thread) {
    const auto bytes = buffers[static_cast<size_t>(thread)].bytes().first(slab);
    for (;;) {
      throw_if_cancelled();
      const double before = seconds_since(start);
      const auto stretch = static_cast<int>(before / seconds * kStretches);
      if (stretch >= kStretches) return;
      const uint64_t i = next++;
      (from_direct ? *from_direct : from)
          .read_at(bytes, i * slab % (size - slab + 1) / 4096 * 4096);
      const uint64_t at = i * kSlab % kFileBytes;
      if (to_direct) {
        to_direct->write_at(bytes, at);
      } else {
        temporary.file().write_at(bytes, at);
        temporary.file().start_writing(at, slab, true);
        temporary.file().drop_cache(at, slab);
      }
      moved[stretch] += 2 * slab;
    }
  });
  double low = 0, high = 0;
  for (int i = 0; i < kStretches; ++i) {
    const double here = static_cast<double>(moved[i].load()) * kStretches / seconds;
    low = i == 0 ? here : std::min(low, here);
    high = std::max(high, here);
  }
  // A split of columns runs at three quarters of a copy, and the same copy was seen to vary by a
  // third within minutes; a disk starts faster than it goes on.
  const double whole = 2.0 * static_cast<double>(next.load() * slab) / seconds_since(start);
  rate.low = 0.5 * std::min(whole, std::max(low, 0.7 * whole));
  rate.high = 1.15 * std::max(whole, high);
  return rate;
}

}  // namespace llmctl::reshard
