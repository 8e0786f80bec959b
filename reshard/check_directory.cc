// Verifying a directory against its manifest.
#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string_view>

#include "formats/core/aligned_buffer.h"
#include "formats/core/atomic_directory.h"
#include "formats/core/block_digest.h"
#include "formats/core/cancel.h"
#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/core/thread_pool.h"
#include "formats/directory.h"
#include "reshard/manifest.h"

namespace llmctl::reshard {

namespace fs = std::filesystem;

namespace {

/// A manifest has a line per file and tensor; this is room for a million.
constexpr uint64_t kMaxManifestBytes = uint64_t{256} << 20;

bool has_manifest(const fs::path& directory) {
  return formats::leads_to_file(directory / kManifestName);
}

fs::path find_manifest_directory(const fs::path& directory) {
  if (directory.empty()) throw_usage("''", "the path is empty", "give a directory");
  if (has_manifest(directory)) return directory;
  if (!formats::leads_to_directory(directory)) {
    throw_invalid(directory.string(), formats::leads_to_file(directory)
                                          ? "a file; a directory that llmctl wrote is expected"
                                          : "no such directory");
  }
  std::vector<std::string> found;
  for (const std::string& name : formats::list_directory(directory)) {
    if (name.front() != '.' && has_manifest(directory / name)) found.push_back(name);
  }
  if (found.size() == 1) return directory / found.front();
  if (found.empty()) {
    throw_invalid(directory.string(), "no " + std::string(kManifestName) + " in it",
                  "only directories that llmctl wrote (without --ft-exact) have one; compare "
                  "others with 'llmctl digest' or 'llmctl diff'");
  }
  throw_invalid(directory.string(), "several folders in it have a manifest",
                "give one of them, e.g. " + printable((directory / found.front()).string()));
}

/// One file while its ranges are read by several workers.
struct Reading {
  const ManifestFile* file = nullptr;
  std::mutex mutex;  // guards what follows
  BlockDigest digest;
  std::optional<std::string> trouble;
};

struct Range {
  Reading* reading;
  uint64_t begin, end;
};

/// Large enough that opening a file twice costs nothing beside it, small enough to share one file
/// among workers.
constexpr uint64_t kRangeBytes = uint64_t{64} << 20;
constexpr uint64_t kStepBytes = uint64_t{1} << 20;

void read_range(const fs::path& path, const Range& range, AlignedBuffer& buffer,
                const std::function<void(uint64_t)>& progress) {
  if (buffer.size() == 0) buffer = AlignedBuffer(kStepBytes);
  const File file = File::open_read(path);
  std::optional<File> direct;
  if (range.reading->file->size_bytes >= kRangeBytes) {
    direct = File::open_direct(path, Access::kRead);
  }
  BlockDigest digest;
  for (uint64_t at = range.begin; at < range.end; at += kStepBytes) {
    throw_if_cancelled();
    const auto bytes =
        buffer.bytes().first(static_cast<size_t>(std::min(kStepBytes, range.end - at)));
    const bool whole = bytes.size() % kDirectAlignment == 0;
    (direct && whole ? *direct : file).read_at(bytes, at);
    digest.add(at / BlockDigest::kBlockBytes, bytes);
    if (progress) progress(bytes.size());
  }
  const std::lock_guard lock(range.reading->mutex);
  range.reading->digest.merge(digest);
}

}  // namespace

CheckResult check_directory(const fs::path& directory, const CheckOptions& options) {
  using Kind = CheckFault::Kind;
  CheckResult result;
  result.directory = find_manifest_directory(directory);
  const fs::path manifest_path = result.directory / kManifestName;
  const std::string text = read_text_file(manifest_path, kMaxManifestBytes);
  if (!is_intact_manifest(text)) {
    result.faults.push_back({Kind::kManifest, std::string(kManifestName), "", ""});
    return result;
  }
  const Manifest manifest = parse_manifest(text, manifest_path.string());
  std::vector<std::unique_ptr<Reading>> readings;
  std::vector<Range> ranges;
  for (const ManifestFile& file : manifest.files) {
    result.num_files += 1;
    const fs::path path = result.directory / file.name;
    uint64_t found_bytes = 0;
    try {
      if (!formats::leads_to_file(path)) {
        result.faults.push_back({Kind::kMissing, file.name, "", ""});
        continue;
      }
      found_bytes = File::open_read(path).size_bytes();
    } catch (const Error& error) {
      result.faults.push_back({Kind::kUnreadable, file.name, "", error.message()});
      continue;
    }
    if (found_bytes != file.size_bytes) {
      result.faults.push_back(
          {Kind::kSize, file.name, std::to_string(file.size_bytes), std::to_string(found_bytes)});
      continue;
    }
    result.size_bytes += file.size_bytes;
    readings.push_back(std::make_unique<Reading>());
    readings.back()->file = &file;
    for (uint64_t at = 0; at < file.size_bytes; at += kRangeBytes) {
      ranges.push_back({readings.back().get(), at, std::min(file.size_bytes, at + kRangeBytes)});
    }
  }
  if (options.total) options.total(result.size_bytes);
  ThreadPool pool(options.jobs);
  pool.parallel_for(static_cast<int64_t>(ranges.size()), [&](int64_t i) {
    static thread_local AlignedBuffer buffer;
    const Range& range = ranges[static_cast<size_t>(i)];
    try {
      read_range(result.directory / range.reading->file->name, range, buffer, options.progress);
    } catch (const Error& error) {
      // A file that cannot be read is a finding; the others are still of interest.
      if (error.code() == ErrorCode::kInterrupted) throw;
      const std::lock_guard lock(range.reading->mutex);
      range.reading->trouble = error.message();
    }
  });
  for (const std::unique_ptr<Reading>& reading : readings) {
    const ManifestFile& file = *reading->file;
    if (reading->trouble) {
      result.faults.push_back({Kind::kUnreadable, file.name, "", *reading->trouble});
    } else if (reading->digest.hex() != file.digest) {
      result.faults.push_back({Kind::kDigest, file.name, file.digest, reading->digest.hex()});
    }
  }
  std::sort(result.faults.begin(), result.faults.end(),
            [](const CheckFault& a, const CheckFault& b) { return a.file < b.file; });
  std::set<std::string_view> known;
  for (const ManifestFile& file : manifest.files) known.insert(file.name);
  for (std::string& name : list_files_below(result.directory)) {
    if (name == kManifestName) continue;
    if (known.count(name) == 0) result.extra.push_back(std::move(name));
  }
  return result;
}

}  // namespace llmctl::reshard
