#include "reshard/output.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
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
#include "formats/core/message.h"
#include "formats/core/thread_pool.h"
#include "formats/export.h"
#include "formats/zstd_file.h"
#include "reshard/executor.h"
#include "reshard/file_sink.h"
#include "reshard/journal.h"
#include "reshard/panel_sink.h"
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
  check_memory(std::min(job.max_memory, kLeastBytes + needed), job.jobs,
               job.group == nullptr ? 1 : job.group->local_size());
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

/// What rank 0 decides for all.
struct Course {
  WriteMode mode = WriteMode::kCached;
  UnitSizes sizes;

  std::string pack() const {
    MessageWriter message;
    for (const uint64_t number : {static_cast<uint64_t>(mode), sizes.slab_bytes,
                                  sizes.most_slab_bytes, sizes.staged_bytes}) {
      message.number(number);
    }
    return message.bytes();
  }
  static Course unpack(const std::string& bytes) {
    MessageReader message(bytes);
    Course course;
    course.mode = static_cast<WriteMode>(message.number());
    course.sizes.slab_bytes = message.number();
    course.sizes.most_slab_bytes = message.number();
    course.sizes.staged_bytes = message.number();
    return course;
  }
};

class OutputWriter {
 public:
  /// `directory` is null on ranks other than 0.
  OutputWriter(const OutputJob& job, AtomicDirectory* directory, fs::path folder)
      : job_(job), group_(job.group), directory_(directory), folder_(std::move(folder)) {}

  OutputSummary write(const std::function<void(uint64_t)>& progress) {
    OutputSummary summary;
    summary.bytes_read = job_.plan->bytes_in();
    summary.bytes_written = job_.bytes_to_write();
    summary.num_tensors = job_.plan->tensors.size();
    summary.num_files = job_.files.size() + job_.side_files.size();
    if (job_.fill) return make(summary, progress);
    const bool large = is_large(summary.bytes_read + summary.bytes_written);
    std::optional<Journal> journal;
    std::optional<FileSink> made;
    if (leads()) {
      course_.mode = choose_write_mode(folder_, large);
      journal.emplace(start_journal(summary));
      made.emplace(folder_, job_.files, job_.plan->tensors.size(), course_.mode,
                   directory_->found_leftover() ? Existing::kWriteOn : Existing::kRefuse);
    }
    if (group_ != nullptr) course_ = Course::unpack(group_->broadcast(course_.pack()));
    if (!leads()) {
      journal.emplace(join_journal());
      made.emplace(folder_, job_.files, job_.plan->tensors.size(), course_.mode, Existing::kShare);
    }
    FileSink& sink = *made;
    const std::vector<Journal> others =
        open_journals(journal_name(group_ == nullptr ? 0 : group_->rank()));
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
    options.unit_sizes = course_.sizes;
    if (group_ != nullptr) {
      options.part = group_->rank();
      options.num_parts = group_->size();
    }
    std::optional<PanelSink> panels;
    if (job_.pack_matrices) panels.emplace(sink, *job_.plan);
    TensorSink& front = panels ? static_cast<TensorSink&>(*panels) : sink;
    ResumableTransfer::Setup setup;
    setup.plan = job_.plan;
    setup.files = &job_.files;
    setup.folder = folder_;
    setup.sink = &sink;
    setup.panels = panels ? &*panels : nullptr;
    setup.check = check ? &*check : nullptr;
    setup.journal = &*journal;
    for (const Journal& other : others) setup.others.push_back(&other);
    setup.progress = progress;
    setup.interval_bytes = journal_interval();
    ResumableTransfer transfer(std::move(setup));
    options.observer = &transfer;
    try {
      Outcome outcome;
      for (const TensorOverflow& overflow : execute(*job_.plan, front, options)) {
        outcome.overflows[overflow.tensor] = overflow.count;
      }
      outcome.resumed_bytes = transfer.resumed_bytes();
      TransferCheck* both_sides = check ? &*check : nullptr;
      if (group_ != nullptr) unite(sink, both_sides, outcome);
      if (!leads()) return summary;
      if (panels) summary.quantization_errors = panels->quantization_errors();
      complete(sink, both_sides, summary.quantization_errors);
      for (const auto& [tensor, count] : outcome.overflows) {
        summary.overflows.emplace_back(job_.plan->tensors[tensor].target.name, count);
      }
      if (continues_) {
        summary.notes.push_back("continued: " + std::to_string(outcome.resumed_bytes) +
                                " bytes were there already");
      }
    } catch (const Error& error) {
      end_failed(error, transfer);
    }
    std::error_code ec;
    for (const std::string& name : list_journals(folder_)) fs::remove(folder_ / name, ec);
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
    complete(sink, nullptr, {});
    return summary;
  }

  /// All that comes after the tensors.
  void complete(FileSink& sink, const TransferCheck* check,
                const std::vector<QuantizationError>& errors) {
    copy_side_files();
    sink.finish();
    std::vector<CanonicalDigest> tensors;
    if (check != nullptr) tensors = check->finish();
    std::vector<ManifestFile> files = list_files(sink);
    if (!errors.empty()) write_errors(errors, files);
    if (job_.compress) compress_files(files);
    // The check has seen the weights; the manifest is to have what the integers stand for.
    const auto& planned = job_.plan->tensors;
    if (check != nullptr && std::any_of(planned.begin(), planned.end(), [](const auto& tensor) {
          return static_cast<bool>(tensor.quantization);
        })) {
      tensors = digest_stored(open_model(folder_, job_.read_back), job_.jobs);
    }
    if (job_.verify == Verify::kReadback) read_back(tensors, check->compared());
    if (job_.with_manifest) write_manifest_file(files, std::move(tensors));
  }

  /// What an execution finds out beside what it writes.
  struct Outcome {
    std::map<size_t, uint64_t> overflows;  ///< by target tensor
    uint64_t resumed_bytes = 0;
  };

  bool leads() const { return group_ == nullptr || group_->rank() == 0; }

  /// Everything that the ranks know comes together on rank 0, once all of it is on the disk.
  void unite(FileSink& sink, TransferCheck* check, Outcome& outcome) {
    MessageWriter mine;
    if (!leads()) {
      mine.text(sink.hand_over());
      mine.text(check == nullptr ? "" : check->sums());
      mine.number(outcome.resumed_bytes);
      for (const auto& [tensor, count] : outcome.overflows) {
        mine.number(tensor);
        mine.number(count);
      }
    }
    const std::vector<std::string> parts = group_->gather(mine.bytes());
    for (size_t rank = 1; rank < parts.size(); ++rank) {
      MessageReader part(parts[rank]);
      sink.take_over(part.text());
      const std::string_view sums = part.text();
      if (check != nullptr) check->add_sums(sums);
      outcome.resumed_bytes += part.number();
      while (!part.is_at_end()) {
        const auto tensor = static_cast<size_t>(part.number());
        outcome.overflows[tensor] += part.number();
      }
    }
  }

  /// Keeps what a later run can continue, and throws the error, or the one that ended the group.
  [[noreturn]] void end_failed(Error error, ResumableTransfer& transfer) {
    const auto is_passing = [&] {
      return error.code() == ErrorCode::kEnvironment || error.code() == ErrorCode::kInterrupted;
    };
    if (is_passing()) flush(transfer);
    uint64_t recorded_bytes = transfer.recorded_bytes();
    if (group_ != nullptr) {
      try {
        std::rethrow_exception(group_->fail(std::make_exception_ptr(error)));
      } catch (const Error& first) {
        error = first;
      }
      recorded_bytes = 0;
      for (const Journal& journal : open_journals()) {
        for (const JournalUnit& unit : journal.units()) recorded_bytes += unit.num_bytes();
      }
    }
    // What a fault of the data or of llmctl has ended would end there again.
    const bool keeps = is_passing() && (job_.resume || recorded_bytes >= kWorthKeeping);
    if (keeps && directory_ != nullptr) directory_->keep();
    if (!keeps || error.code() == ErrorCode::kInterrupted) throw Error(error);
    throw Error(error.code(), error.message(), error.where(),
                error.hint() + (error.hint().empty() ? "" : ", then ") +
                    "repeat the command with --resume to continue");
  }

  void flush(ResumableTransfer& transfer) {
    try {
      transfer.flush();
    } catch (...) {
      // The first error is the one to tell. What the journal has is good.
    }
  }

  JournalHeader journal_header() const {
    const UnitSizes& sizes = course_.sizes;
    const formats::Checkpoint& source = job_.plan->model->checkpoint();
    JournalHeader header = job_.request;
    header["llmctl"] = llmctl_version();
    header["source"] = source_fingerprint(source) + " " + file_stamps(source);
    header["plan"] = plan_fingerprint(*job_.plan, job_.files);
    header["write mode"] = write_mode_name(course_.mode);
    header["unit sizes"] = std::to_string(sizes.slab_bytes) + " " +
                           std::to_string(sizes.most_slab_bytes) + " " +
                           std::to_string(sizes.staged_bytes);
    return header;
  }

  /// The journal of an earlier run of the same job, or a new one in an empty folder.
  Journal start_journal(OutputSummary& summary) {
    const fs::path path = folder_ / kJournalName;
    course_.sizes = choose_unit_sizes(job_.jobs, job_.max_memory);
    if (directory_->found_leftover() && job_.resume) {
      if (std::optional<Journal> journal = Journal::open(path)) {
        if (adopt_sizes(*journal)) {
          check_same_job(journal->header(), journal_header());
          header_ = journal->header();
          for (const Journal& one : open_journals()) continues_ |= !one.units().empty();
          return std::move(*journal);
        }
      }
      directory_->clear();
      summary.notes.push_back("nothing to continue in " + folder_.string() + ": starts anew");
    }
    header_ = journal_header();
    return Journal::create(path, header_);
  }

  /// This rank's own, of an earlier run or new. Requires: rank 0 has started its own.
  Journal join_journal() {
    const fs::path path = folder_ / journal_name(group_->rank());
    header_ = journal_header();
    if (std::optional<Journal> journal = Journal::open(path)) {
      if (is_of_this_job(*journal)) return std::move(*journal);
    }
    std::error_code ec;
    fs::remove(path, ec);
    return Journal::create(path, header_);
  }

  /// All that are of this job, but for the one named.
  std::vector<Journal> open_journals(const std::string& except = "") const {
    std::vector<Journal> journals;
    for (const std::string& name : list_journals(folder_)) {
      if (name == except) continue;
      std::optional<Journal> journal = Journal::open(folder_ / name);
      if (journal && is_of_this_job(*journal)) journals.push_back(std::move(*journal));
    }
    return journals;
  }

  bool is_of_this_job(const Journal& journal) const { return journal.header() == header_; }

  /// Work is cut as it was, whatever memory there is to-day.
  bool adopt_sizes(const Journal& journal) {
    const auto it = journal.header().find("unit sizes");
    if (it == journal.header().end()) return false;
    std::istringstream words(it->second);
    UnitSizes sizes;
    if (!(words >> sizes.slab_bytes >> sizes.most_slab_bytes >> sizes.staged_bytes)) return false;
    course_.sizes = sizes;
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
      directory_->keep();
      const bool readable = name != "source" && name != "plan";
      throw_usage("--resume",
                  name + (readable ? " was " + printable(before) + ", is " + printable(after)
                                   : std::string(" is not that of the run to continue")),
                  "repeat the earlier command, or leave --resume out to start anew");
    }
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

  void write_errors(const std::vector<QuantizationError>& errors,
                    std::vector<ManifestFile>& files) {
    const std::string text = quantization_report(errors);
    const fs::path path = folder_ / kQuantizationReport;
    std::error_code ec;
    fs::remove(path, ec);  // what a killed run has left
    File file = File::create(path);
    file.write_at(std::as_bytes(std::span(text)), 0);
    file.sync();
    if (!job_.with_manifest) return;
    files.push_back({kQuantizationReport, text.size(), digest_file(path).hex()});
    std::sort(files.begin(), files.end(),
              [](const ManifestFile& a, const ManifestFile& b) { return a.name < b.name; });
  }

  /// Every tensor begins a frame, so that a reader decompresses what it wants and little else.
  void compress_files(std::vector<ManifestFile>& files) {
    ThreadPool pool(std::max(1, job_.jobs));
    for (const formats::FilePlan& plan : job_.files) {
      if (plan.placements.empty()) continue;
      std::vector<uint64_t> cuts;
      for (const formats::Placement& placement : plan.placements) {
        cuts.push_back(placement.offset_bytes);
      }
      std::sort(cuts.begin(), cuts.end());
      const std::string name = plan.name + std::string(formats::kCompressedSuffix);
      const fs::path source = folder_ / plan.name, target = folder_ / name;
      std::error_code ec;
      fs::remove(target, ec);  // what a killed run has left
      formats::compress_zstd(source, target, cuts, pool);
      fs::remove(source, ec);
      if (ec) throw Error(ErrorCode::kEnvironment, "cannot remove: " + ec.message(), source);
      for (ManifestFile& file : files) {
        if (file.name != plan.name) continue;
        file = {name, File::open_read(target).size_bytes(), digest_file(target).hex()};
      }
    }
  }

  /// What stands on the disk, through the reader that every user of it takes.
  void read_back(const std::vector<CanonicalDigest>& written,
                 const std::set<std::string>& compared) {
    for (const formats::FilePlan& file : job_.files) {
      const bool is_compressed = job_.compress && !file.placements.empty();
      const File opened = File::open_read(
          folder_ / (file.name + std::string(is_compressed ? formats::kCompressedSuffix : "")));
      opened.drop_cache(0, opened.size_bytes());
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
  ProcessGroup* group_;
  AtomicDirectory* directory_;
  fs::path folder_;
  Course course_;
  JournalHeader header_;
  bool continues_ = false;  // an earlier run
};

/// Throws unless every rank has the same job over the same source.
void check_same_job_everywhere(const OutputJob& job) {
  ProcessGroup& group = *job.group;
  const formats::Checkpoint& source = job.plan->model->checkpoint();
  MessageWriter request;
  request.text(job.target.string());
  for (const auto& [name, value] : job.request) request.text(name + "=" + value);
  check_same(group, "llmctl", std::string(llmctl_version()), "start the same program everywhere");
  check_same(group, "the command line", request.bytes(), "give every rank the same flags");
  check_same(group, "the source", source_fingerprint(source) + file_stamps(source),
             "all hosts must see the same files under the same path");
  check_same(group, "the plan", plan_fingerprint(*job.plan, job.files), "");
}

/// Rank 0's working directory, which all ranks must see.
fs::path share_folder(ProcessGroup& group, const AtomicDirectory* directory) {
  const bool leads = directory != nullptr;
  std::string folder, name;
  if (leads) {
    folder = directory->working_path().string();
    // A name that no host's cache can know.
    name = ".llmctl-meeting-" + std::to_string(::getpid()) + "-" +
           std::to_string(std::chrono::system_clock::now().time_since_epoch().count());
    File::create(fs::path(folder) / name);
  }
  folder = group.broadcast(folder);
  name = group.broadcast(name);
  std::error_code ec;
  if (!fs::exists(fs::path(folder) / name, ec)) {
    throw Error(ErrorCode::kEnvironment, "what rank 0 writes there is not seen here", folder,
                "all hosts must share the file system of the destination");
  }
  group.gather("");
  if (leads) fs::remove(fs::path(folder) / name, ec);
  return folder;
}

/// Has the directory, on rank 0, be written, then puts it in place.
OutputSummary write_directory(const OutputJob& job, AtomicDirectory* directory,
                              const std::function<void(uint64_t)>& progress) {
  ProcessGroup* group = job.group;
  try {
    const fs::path folder =
        group == nullptr ? directory->working_path() : share_folder(*group, directory);
    OutputSummary summary = OutputWriter(job, directory, folder).write(progress);
    if (directory != nullptr) {
      if (directory->found_leftover() && !job.resume) {
        summary.notes.push_back("what a killed run had left in " +
                                directory->working_path().string() + " is removed");
      }
      directory->commit();
    }
    if (group != nullptr) group->broadcast("");
    return summary;
  } catch (...) {
    // Until here rank 0 keeps the directory in which the others may be writing.
    if (group != nullptr) std::rethrow_exception(group->fail(std::current_exception()));
    throw;
  }
}

}  // namespace

OutputSummary write_output(const OutputJob& job, const std::function<void(uint64_t)>& progress) {
  ProcessGroup* group = job.group;
  if (group != nullptr) check_same_job_everywhere(job);
  if (group != nullptr && group->rank() != 0) {
    return write_directory(job, nullptr, [&](uint64_t bytes) { group->add_progress(bytes); });
  }
  const fs::path parent = job.target.has_parent_path() ? job.target.parent_path() : fs::path(".");
  std::error_code ec;
  const bool made_parent = !fs::exists(parent, ec) && fs::create_directories(parent, ec);
  try {
    AtomicDirectory directory(job.target, job.overwrite,
                              job.resume ? Leftover::kContinue : Leftover::kRemove);
    if (group != nullptr) group->listen_to_progress(progress);
    OutputSummary summary = write_directory(job, &directory, progress);
    if (group != nullptr) group->listen_to_progress({});
    return summary;
  } catch (...) {
    if (group != nullptr) group->listen_to_progress({});
    if (made_parent) fs::remove(parent, ec);
    throw;
  }
}

}  // namespace llmctl::reshard
