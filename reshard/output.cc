#include "reshard/output.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>

#include "formats/core/atomic_directory.h"
#include "formats/core/block_digest.h"
#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/core/thread_pool.h"
#include "reshard/executor.h"
#include "reshard/file_sink.h"
#include "reshard/journal.h"
#include "reshard/preflight.h"
#include "reshard/resume.h"
#include "reshard/synth.h"
#include "reshard/transfer_check.h"

namespace llmctl::reshard {

namespace fs = std::filesystem;

uint64_t OutputJob::bytes_to_write() const {
  uint64_t bytes = 0;
  for (const formats::FilePlan& file : files) bytes += file.size_bytes;
  return bytes;
}

namespace {

uint64_t allocated_bytes(const fs::path& directory) {
  std::error_code ec;
  uint64_t bytes = 0;
  if (!fs::is_directory(fs::symlink_status(directory, ec))) return 0;
  for (const std::string& name : list_files_below(directory)) {
    struct stat status {};
    if (::lstat((directory / name).c_str(), &status) == 0) {
      bytes += static_cast<uint64_t>(status.st_blocks) * 512;
    }
  }
  return bytes;
}

}  // namespace

void check_resources(const OutputJob& job) {
  // Holes take no room, but for the pages around each file's headers.
  const uint64_t needed = job.sparse ? job.files.size() << 16 : job.bytes_to_write();
  // What an earlier run has left is written over, or removed first.
  const uint64_t there = allocated_bytes(AtomicDirectory::working_path_of(job.target));
  check_destination(job.target, needed - std::min(needed, there));
  // Buffers take what the job needs, up to the limit.
  constexpr uint64_t kLeastBytes = uint64_t{64} << 20;
  check_memory(std::min(job.max_memory, kLeastBytes + needed), job.jobs);
}

namespace {

/// Work worth keeping for a later --resume when nobody has asked for that.
constexpr uint64_t kWorthKeeping = uint64_t{1} << 30;
/// For tests, whose jobs are small: a number of bytes from the environment, or `usual`.
uint64_t threshold(const char* variable, uint64_t usual) {
  const char* text = std::getenv(variable);
  const unsigned long long bytes = text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
  return bytes > 0 ? bytes : usual;
}

/// How much is done between two entries of the journal.
uint64_t journal_interval() { return threshold("LLMCTL_JOURNAL_BYTES", uint64_t{1} << 30); }

/// Small results stay in the page cache for whoever uses them next.
bool is_large(uint64_t bytes) {
  return bytes > threshold("LLMCTL_LARGE_JOB_BYTES", uint64_t{2} << 30);
}

class OutputWriter {
 public:
  OutputWriter(const OutputJob& job, AtomicDirectory& directory)
      : job_(job), directory_(directory), folder_(directory.working_path()) {}

  OutputSummary write(const std::function<void(uint64_t)>& progress) {
    OutputSummary summary;
    summary.bytes_read = job_.plan->bytes_in();
    summary.bytes_written = job_.bytes_to_write();
    summary.num_tensors = job_.plan->tensors.size();
    summary.num_files = job_.files.size() + job_.side_files.size();
    if (job_.fill) return make(summary, progress);
    const bool large = is_large(summary.bytes_read + summary.bytes_written);
    const WriteMode mode = choose_write_mode(folder_, large);
    Journal journal = start_journal(mode, summary);
    const bool continues = !journal.units().empty();
    FileSink sink(folder_, job_.files, job_.plan->tensors.size(), mode,
                  directory_.found_leftover() ? Existing::kWriteOn : Existing::kRefuse);
    std::optional<TransferCheck> check;
    if (job_.verify != Verify::kNone) check.emplace(*job_.plan, job_.overflow);
    ExecuteOptions options;
    options.jobs = job_.jobs;
    options.max_memory = job_.max_memory;
    options.overflow = job_.overflow;
    options.overflow_is_error = job_.overflow_is_error;
    options.leave_page_cache = large;
    options.compare_replicas = true;
    options.progress = progress;
    options.unit_sizes = sizes_;
    ResumableTransfer::Setup setup;
    setup.plan = job_.plan;
    setup.files = &job_.files;
    setup.folder = folder_;
    setup.sink = &sink;
    setup.check = check ? &*check : nullptr;
    setup.journal = &journal;
    setup.progress = progress;
    setup.interval_bytes = journal_interval();
    ResumableTransfer transfer(std::move(setup));
    options.observer = &transfer;
    try {
      for (const TensorOverflow& overflow : execute(*job_.plan, sink, options)) {
        summary.overflows.emplace_back(job_.plan->tensors[overflow.tensor].target.name,
                                       overflow.count);
      }
      complete(sink, check ? &*check : nullptr);
    } catch (const Error& error) {
      // What a fault of the data or of llmctl has ended would end there again.
      const bool may_pass = error.code() == ErrorCode::kEnvironment;
      if (!may_pass && error.code() != ErrorCode::kInterrupted) throw;
      if (!keep_for_resume(transfer) || !may_pass) throw;
      throw Error(error.code(), error.message(), error.where(),
                  error.hint() + (error.hint().empty() ? "" : ", then ") +
                      "repeat the command with --resume to continue");
    }
    if (continues) {
      summary.notes.push_back("continued: " + std::to_string(transfer.resumed_bytes()) +
                              " bytes were there already");
    }
    std::error_code ec;
    fs::remove(folder_ / kJournalName, ec);
    return summary;
  }

 private:
  /// An output without a source: there is nothing to compare with and nothing worth continuing.
  OutputSummary make(OutputSummary summary, const std::function<void(uint64_t)>& progress) {
    summary.bytes_read = 0;
    if (job_.sparse) {
      write_sparse(*job_.plan, job_.files, folder_);
      return summary;
    }
    const WriteMode mode = choose_write_mode(folder_, is_large(summary.bytes_written));
    FileSink sink(folder_, job_.files, job_.plan->tensors.size(), mode, Existing::kRefuse);
    ExecuteOptions options;
    options.jobs = job_.jobs;
    options.progress = progress;
    job_.fill(sink, options);
    complete(sink, nullptr);
    return summary;
  }

  /// All that comes after the tensors.
  void complete(FileSink& sink, const TransferCheck* check) {
    copy_side_files();
    sink.finish();
    std::vector<CanonicalDigest> tensors;
    if (check != nullptr) tensors = check->finish();
    const std::vector<ManifestFile> files = list_files(sink);
    if (job_.verify == Verify::kReadback) read_back(tensors, check->compared());
    if (job_.with_manifest) write_manifest_file(files, std::move(tensors));
  }

  JournalHeader journal_header(WriteMode mode, const UnitSizes& sizes) const {
    const formats::Checkpoint& source = job_.plan->model->checkpoint();
    JournalHeader header = job_.request;
    header["llmctl"] = llmctl_version();
    header["source"] = source_fingerprint(source) + " " + file_stamps(source);
    header["plan"] = plan_fingerprint(*job_.plan, job_.files);
    header["write mode"] = write_mode_name(mode);
    header["unit sizes"] = std::to_string(sizes.slab_bytes) + " " +
                           std::to_string(sizes.most_slab_bytes) + " " +
                           std::to_string(sizes.staged_bytes);
    return header;
  }

  /// The journal of an earlier run of the same job, or a new one in an empty folder.
  Journal start_journal(WriteMode mode, OutputSummary& summary) {
    const fs::path path = folder_ / kJournalName;
    sizes_ = choose_unit_sizes(job_.jobs, job_.max_memory);
    if (directory_.found_leftover() && job_.resume) {
      if (std::optional<Journal> journal = Journal::open(path)) {
        if (adopt_sizes(*journal)) {
          check_same_job(journal->header(), journal_header(mode, sizes_));
          return std::move(*journal);
        }
      }
      directory_.clear();
      summary.notes.push_back("nothing to continue in " + folder_.string() + ": starts anew");
    }
    return Journal::create(path, journal_header(mode, sizes_));
  }

  /// Work is cut as it was, whatever memory there is to-day.
  bool adopt_sizes(const Journal& journal) {
    const auto it = journal.header().find("unit sizes");
    if (it == journal.header().end()) return false;
    std::istringstream words(it->second);
    UnitSizes sizes;
    if (!(words >> sizes.slab_bytes >> sizes.most_slab_bytes >> sizes.staged_bytes)) return false;
    sizes_ = sizes;
    return true;
  }

  void check_same_job(const JournalHeader& then, const JournalHeader& now) {
    const auto value = [](const JournalHeader& header, const std::string& name) {
      const auto it = header.find(name);
      return it == header.end() || it->second.empty() ? std::string("not given") : it->second;
    };
    // The flags first: they explain a plan that differs.
    std::vector<std::string> names;
    for (const auto& [name, text] : job_.request) names.push_back(name);
    for (const char* name : {"llmctl", "source", "plan", "write mode"}) names.push_back(name);
    for (const std::string& name : names) {
      const std::string before = value(then, name), after = value(now, name);
      if (before == after) continue;
      directory_.keep();
      const bool readable = name != "source" && name != "plan";
      throw_usage("--resume",
                  name + (readable ? " was " + printable(before) + ", is " + printable(after)
                                   : std::string(" is not that of the run to continue")),
                  "repeat the earlier command, or leave --resume out to start anew");
    }
  }

  /// Whether a later run will find what this one has done.
  bool keep_for_resume(ResumableTransfer& transfer) {
    try {
      transfer.flush();
    } catch (...) {
      // The first error is the one to tell. What the journal has is good.
    }
    if (!job_.resume && transfer.recorded_bytes() < kWorthKeeping) return false;
    directory_.keep();
    return true;
  }

  void copy_side_files() {
    for (const fs::path& file : job_.side_files) {
      std::error_code ec;
      fs::copy_file(file, folder_ / file.filename(), fs::copy_options::overwrite_existing, ec);
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
    std::error_code ec;
    fs::remove(folder_ / kManifestName, ec);
    File file = File::create(folder_ / kManifestName);
    file.write_at(std::as_bytes(std::span(text)), 0);
    file.sync();
  }

  const OutputJob& job_;
  AtomicDirectory& directory_;
  fs::path folder_;
  UnitSizes sizes_;
};

}  // namespace

OutputSummary write_output(const OutputJob& job, const std::function<void(uint64_t)>& progress) {
  const fs::path parent = job.target.has_parent_path() ? job.target.parent_path() : fs::path(".");
  std::error_code ec;
  const bool made_parent = !fs::exists(parent, ec) && fs::create_directories(parent, ec);
  try {
    AtomicDirectory directory(job.target, job.overwrite,
                              job.resume ? Leftover::kContinue : Leftover::kRemove);
    OutputSummary summary = OutputWriter(job, directory).write(progress);
    if (directory.found_leftover() && !job.resume) {
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
