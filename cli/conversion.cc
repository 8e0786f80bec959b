#include "cli/conversion.h"

#include <array>
#include <atomic>
#include <charconv>
#include <chrono>

#include "cli/flags.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/size.h"
#include "formats/core/error.h"

namespace llmctl::cli {
namespace {

void report_overflows(const reshard::ConvertSummary& summary, const std::string& policy) {
  constexpr size_t kMaxLines = 10;
  const std::string outcome = policy == "clamp" ? "were clamped" : "became infinite";
  for (size_t i = 0; i < summary.overflows.size() && i < kMaxLines; ++i) {
    const auto& [tensor, count] = summary.overflows[i];
    print_note(tensor + ": " + std::to_string(count) +
               " values are beyond the range of the target dtype and " + outcome);
  }
  if (summary.overflows.size() > kMaxLines) {
    print_note("and so in " + std::to_string(summary.overflows.size() - kMaxLines) +
               " more tensors");
  }
}

}  // namespace

reshard::OnOverflow overflow_policy(const std::string& name) {
  if (name == "error") return reshard::OnOverflow::kError;
  return name == "clamp" ? reshard::OnOverflow::kClamp : reshard::OnOverflow::kInf;
}

void MegatronFlags::add(CLI::App& verb, bool has_source) {
  add_integer(verb, "--pp,--pipeline-parallel-size", pp, 1, 65536, "P",
              "Pipeline-parallel size of a Megatron target (default 1)");
  verb.add_option("--pipeline-blocks", blocks,
                  "Layers of each pipeline stage, e.g. 2,3,3,2 (default: even shares)")
      ->type_name("N,N,...");
  add_integer(verb, "--virtual-pp", virtual_pp, 1, 1024, "V",
              "Virtual pipeline stages on each stage (default 1)");
  static constexpr std::array<std::string_view, 2> kNames = {"legacy", "core"};
  add_choice(verb, "--megatron-names", names, kNames,
             "Names of megatron.model or of megatron.core (default: the source's, else legacy)");
  if (!has_source) return;
  verb.add_flag("--keep-rng", keep_rng, "Carry the random number state of rank 0 into every rank");
}

void MegatronFlags::resolve(reshard::ConvertOptions& options) const {
  options.pp = pp;
  options.virtual_pp = virtual_pp;
  options.keep_rng = keep_rng;
  if (!names.empty()) options.megatron_names = names;
  for (size_t begin = 0; !blocks.empty() && begin <= blocks.size();) {
    const size_t end = std::min(blocks.find(',', begin), blocks.size());
    int64_t layers = 0;
    const auto result = std::from_chars(blocks.data() + begin, blocks.data() + end, layers);
    if (result.ec != std::errc() || result.ptr != blocks.data() + end || layers < 0 ||
        layers > 100000) {
      throw_usage("--pipeline-blocks " + printable(blocks, 100),
                  "must be numbers of layers with commas between, e.g. 2,3,3,2");
    }
    options.pipeline_blocks.push_back(layers);
    begin = end + 1;
  }
}

void WriteFlags::add(CLI::App& verb) {
  add_jobs(verb, jobs, 4);
  add_size(verb, "--max-memory", max_memory,
           "Most resident memory of the whole process, of each one under mpirun (default "
           "512MiB)");
  add_verify(verb, verify);
  add_progress(verb, progress);
  verb.add_flag("--overwrite", overwrite, "Replace DST when it exists, once all is written");
  verb.add_flag("--resume", resume,
                "Continue what a killed or failed run of the same command has left");
  verb.add_flag("--dry-run", dry_run, "Print the plan and write nothing");
}

void WriteFlags::resolve(reshard::ConvertOptions& options) const {
  options.jobs = static_cast<int>(jobs);
  constexpr uint64_t kLeastMemory = uint64_t{64} << 20;
  if (max_memory != 0 && max_memory < kLeastMemory) {
    throw_usage("--max-memory", "too little to work with", "give 64MiB or more");
  }
  if (max_memory != 0) options.max_memory = max_memory;
  options.verify = verify.none || verify.mode == "none" ? reshard::Verify::kNone
                   : verify.mode == "readback"          ? reshard::Verify::kReadback
                                                        : reshard::Verify::kPass;
  options.overwrite = overwrite;
  options.resume = resume;
}

ExitCode carry_out(reshard::Conversion& conversion, const WriteFlags& flags,
                   const std::string& on_overflow, const ProcessGroup* group, bool with_rate,
                   reshard::ConvertSummary* result) {
  if (group != nullptr && group->rank() != 0) {
    if (!flags.dry_run) conversion.run();
    return ExitCode::kDone;
  }
  for (const std::string& note : conversion.notes()) print_note(note);
  if (flags.dry_run) {
    write_stdout(conversion.describe());
    return ExitCode::kDone;
  }
  const auto start = std::chrono::steady_clock::now();
  reshard::ConvertSummary summary;
  {
    Progress progress("converting", progress_style(flags.progress));
    const uint64_t total = conversion.bytes_to_write();
    std::atomic<uint64_t> done{0};
    summary = conversion.run([&](uint64_t bytes) {
      progress.update(done.fetch_add(bytes, std::memory_order_relaxed) + bytes, total);
    });
    progress.update(total, total);  // headers are not counted one by one
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (const std::string& note : summary.notes) print_note(note);
  report_overflows(summary, on_overflow);
  const double rate = static_cast<double>(summary.bytes_written) / std::max(seconds, 1e-6);
  char time[32];
  std::snprintf(time, sizeof time, "%.2f s", seconds);
  write_stderr(
      "llmctl: wrote " + printable(conversion.target_path().string(), 4000) + ": " +
      std::to_string(summary.num_tensors) + " tensors, " + std::to_string(summary.num_files) +
      " files, " + format_size(summary.bytes_written) + " in " + time +
      (with_rate
           ? " (" + format_size(static_cast<uint64_t>(rate)) + "/s" +
                 (group == nullptr ? "" : ", " + std::to_string(group->size()) + " processes") + ")"
           : "") +
      "\n");
  if (result != nullptr) *result = std::move(summary);
  return ExitCode::kDone;
}

}  // namespace llmctl::cli
