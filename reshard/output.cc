#include "reshard/output.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "formats/core/atomic_directory.h"
#include "formats/core/block_digest.h"
#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/core/thread_pool.h"
#include "reshard/executor.h"
#include "reshard/file_sink.h"
#include "reshard/preflight.h"
#include "reshard/transfer_check.h"

namespace llmctl::reshard {

namespace fs = std::filesystem;

uint64_t OutputJob::bytes_to_write() const {
  uint64_t bytes = 0;
  for (const formats::FilePlan& file : files) bytes += file.size_bytes;
  return bytes;
}

void check_resources(const OutputJob& job) {
  check_destination(job.target, job.bytes_to_write());
  check_memory(job.max_memory, job.jobs);
}

namespace {

class OutputWriter {
 public:
  OutputWriter(const OutputJob& job, const fs::path& folder) : job_(job), folder_(folder) {}

  OutputSummary write(const std::function<void(uint64_t)>& progress) {
    OutputSummary summary;
    summary.bytes_read = job_.plan->bytes_in();
    summary.bytes_written = job_.bytes_to_write();
    summary.num_tensors = job_.plan->tensors.size();
    summary.num_files = job_.files.size() + job_.side_files.size();
    // Small results stay in the page cache for whoever uses them next.
    constexpr uint64_t kLargeJob = uint64_t{2} << 30;
    const bool large = summary.bytes_read + summary.bytes_written > kLargeJob;
    FileSink sink(folder_, job_.files, job_.plan->tensors.size(), large);
    std::optional<TransferCheck> check;
    if (job_.verify != Verify::kNone) check.emplace(*job_.plan, job_.overflow);
    ExecuteOptions options;
    options.jobs = job_.jobs;
    options.max_memory = job_.max_memory;
    options.overflow = job_.overflow;
    options.overflow_is_error = job_.overflow_is_error;
    options.leave_page_cache = large;
    options.progress = progress;
    if (check) options.observer = &*check;
    for (const TensorOverflow& overflow : execute(*job_.plan, sink, options)) {
      summary.overflows.emplace_back(job_.plan->tensors[overflow.tensor].target.name,
                                     overflow.count);
    }
    copy_side_files();
    sink.finish();
    std::vector<CanonicalDigest> tensors;
    if (check) tensors = check->finish();
    const std::vector<ManifestFile> files = list_files(sink);
    if (job_.verify == Verify::kReadback) read_back(tensors, check->compared());
    if (job_.with_manifest) write_manifest_file(files, std::move(tensors));
    return summary;
  }

 private:
  void copy_side_files() {
    for (const fs::path& file : job_.side_files) {
      std::error_code ec;
      fs::copy_file(file, folder_ / file.filename(), ec);
      if (ec) {
        throw Error(ErrorCode::kEnvironment, "cannot copy: " + ec.message(), file.string());
      }
    }
  }

  /// Names, sizes and digests of all that was written, by name.
  std::vector<ManifestFile> list_files(const FileSink& sink) const {
    std::vector<ManifestFile> files;
    if (!job_.with_manifest) return files;
    for (const FileDigest& file : sink.digests()) {
      files.push_back({file.name, file.size_bytes, file.digest});
    }
    for (const fs::path& file : job_.side_files) {
      const std::string name = file.filename().string();
      files.push_back(
          {name, File::open_read(folder_ / name).size_bytes(), digest_file(folder_ / name).hex()});
    }
    std::sort(files.begin(), files.end(),
              [](const ManifestFile& a, const ManifestFile& b) { return a.name < b.name; });
    return files;
  }

  /// What stands on the disk, through the reader that every user of it takes.
  void read_back(const std::vector<CanonicalDigest>& written,
                 const std::set<std::string>& compared) {
    for (const formats::FilePlan& file : job_.files) {
      const File opened = File::open_read(folder_ / file.name);
      opened.drop_cache(0, file.size_bytes);
    }
    const Model model = open_model(folder_, job_.read_back);
    std::map<std::string, CanonicalDigest> found;
    for (CanonicalDigest& digest : digest_stored(model, job_.jobs)) found[digest.key] = digest;
    for (const CanonicalDigest& want : written) {
      const auto it = found.find(want.key);
      if (it != found.end() && it->second.digest == want.digest) continue;
      // What a step has changed may be read under another name or another step.
      if (compared.count(want.key) == 0) continue;
      throw Error(ErrorCode::kEnvironment,
                  it == found.end() ? "is not in the output when it is read back"
                                    : "read back with digest " + digest_hex(it->second.digest) +
                                          ", written with " + digest_hex(want.digest),
                  "tensor '" + want.key + "'", "nothing was published; check the disk");
    }
  }

  void write_manifest_file(std::vector<ManifestFile> files, std::vector<CanonicalDigest> tensors) {
    const Model& model = *job_.plan->model;
    Manifest manifest;
    manifest.llmctl_version = llmctl_version();
    manifest.format = job_.format;
    manifest.family = model.family().name;
    manifest.geometry = job_.geometry;
    manifest.source_format = model.checkpoint().format;
    manifest.source_fingerprint = source_fingerprint(model.checkpoint());
    manifest.files = std::move(files);
    manifest.tensors = std::move(tensors);
    const std::string text = write_manifest(manifest);
    File file = File::create(folder_ / kManifestName);
    file.write_at(std::as_bytes(std::span(text)), 0);
    file.sync();
  }

  const OutputJob& job_;
  fs::path folder_;
};

}  // namespace

OutputSummary write_output(const OutputJob& job, const std::function<void(uint64_t)>& progress) {
  const fs::path parent = job.target.has_parent_path() ? job.target.parent_path() : fs::path(".");
  std::error_code ec;
  const bool made_parent = !fs::exists(parent, ec) && fs::create_directories(parent, ec);
  try {
    AtomicDirectory directory(job.target, job.overwrite);
    OutputSummary summary = OutputWriter(job, directory.working_path()).write(progress);
    if (directory.found_leftover()) {
      summary.notes.push_back("what a killed run had left in " + directory.working_path().string() +
                              " is removed");
    }
    directory.commit();
    return summary;
  } catch (...) {
    if (made_parent) fs::remove(parent, ec);
    throw;
  }
}

}  // namespace llmctl::reshard
