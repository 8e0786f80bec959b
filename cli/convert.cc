#include "reshard/convert.h"

#include <array>
#include <atomic>
#include <chrono>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/size.h"
#include "formats/registry.h"

namespace llmctl::cli {
namespace {

struct ConvertFlags {
  std::string source, destination, format, dtype, on_overflow = "inf", model_name, family_file,
                                                  progress;
  int64_t tp = 1, jobs = 1;
  uint64_t max_shard_bytes = 0, max_memory = 0;
  VerifyFlags verify;
  bool dry_run = false, overwrite = false, ft_exact = false;
};

constexpr std::array<std::string_view, 3> kOverflowPolicies = {"error", "inf", "clamp"};

std::vector<std::string_view> writable_formats() {
  std::vector<std::string_view> names;
  for (const formats::Format& format : formats::format_table()) {
    if (format.place != nullptr) names.push_back(format.name);
  }
  return names;
}

std::vector<std::string_view> writable_dtypes() {
  std::vector<std::string_view> names;
  for (const DTypeInfo& info : dtype_table()) {
    if (!info.flag.empty()) names.push_back(info.flag);
  }
  return names;
}

reshard::OnOverflow overflow_policy(const std::string& name) {
  if (name == "error") return reshard::OnOverflow::kError;
  return name == "clamp" ? reshard::OnOverflow::kClamp : reshard::OnOverflow::kInf;
}

reshard::Verify verify_mode(const VerifyFlags& flags) {
  if (flags.none || flags.mode == "none") return reshard::Verify::kNone;
  return flags.mode == "readback" ? reshard::Verify::kReadback : reshard::Verify::kPass;
}

reshard::ConvertOptions resolve(const ConvertFlags& flags) {
  if (flags.ft_exact && flags.format != "ft") {
    throw_usage("--ft-exact", "is about FasterTransformer output only",
                "add --to ft or leave it out");
  }
  reshard::ConvertOptions options;
  options.source = flags.source;
  options.destination = flags.destination;
  options.format = flags.format;
  options.tp = flags.tp;
  if (!flags.dtype.empty()) options.dtype = find_dtype(flags.dtype);
  options.on_overflow = overflow_policy(flags.on_overflow);
  options.ft_exact = flags.ft_exact;
  options.model_name = flags.model_name;
  if (flags.max_shard_bytes != 0) options.max_shard_bytes = flags.max_shard_bytes;
  if (flags.max_memory != 0) options.max_memory = flags.max_memory;
  options.jobs = static_cast<int>(flags.jobs);
  options.family_file = flags.family_file;
  options.overwrite = flags.overwrite;
  options.verify = verify_mode(flags.verify);
  return options;
}

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

ExitCode run_convert(const ConvertFlags& flags) {
  reshard::Conversion conversion(resolve(flags));
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
  report_overflows(summary, flags.on_overflow);
  const double rate = static_cast<double>(summary.bytes_written) / std::max(seconds, 1e-6);
  char time[32];
  std::snprintf(time, sizeof time, "%.2f s", seconds);
  write_stderr("llmctl: wrote " + printable(conversion.target_path().string(), 4000) + ": " +
               std::to_string(summary.num_tensors) + " tensors, " +
               std::to_string(summary.num_files) + " files, " + format_size(summary.bytes_written) +
               " in " + time + " (" + format_size(static_cast<uint64_t>(rate)) + "/s)\n");
  return ExitCode::kDone;
}

}  // namespace

Run add_convert(CLI::App& verb) {
  const auto flags = std::make_shared<ConvertFlags>();
  add_path(verb, "SRC", flags->source, "Checkpoint to read: a directory or a weights file");
  add_path(verb, "DST", flags->destination,
           "Directory to make; --to ft puts N-gpu into it unless it has that name itself");
  add_choice(verb, "--to", flags->format, writable_formats(), "Format to write")->required();
  add_integer(verb, "--tp,--tensor-parallel-size", flags->tp, 1, 65536, "T",
              "Tensor-parallel size of the target (default 1)");
  add_choice(verb, "--dtype", flags->dtype, writable_dtypes(),
             "Data type to write (default: as stored)");
  add_choice(verb, "--on-overflow", flags->on_overflow, kOverflowPolicies,
             "Values beyond the target's range: stop, make infinite (default) or clamp");
  add_size(verb, "--max-shard-size", flags->max_shard_bytes,
           "Largest weights file of --to hf (default 5GB)");
  verb.add_flag("--ft-exact", flags->ft_exact,
                "Write config.ini exactly as FasterTransformer's own converters do");
  add_jobs(verb, flags->jobs);
  add_progress(verb, flags->progress);
  add_size(verb, "--max-memory", flags->max_memory,
           "Most memory for buffers, all threads together (default 384MiB)");
  verb.add_option("--model-name", flags->model_name,
                  "Name to write into config.ini (default: the source's)")
      ->type_name("NAME");
  add_family_file(verb, flags->family_file);
  add_verify(verb, flags->verify);
  verb.add_flag("--overwrite", flags->overwrite, "Replace DST when it exists, once all is written");
  verb.add_flag("--dry-run", flags->dry_run, "Print the plan and write nothing");
  static constexpr std::array<std::string_view, 5> kExamples = {
      "convert ./bloom-560m ./bloom-ft --to ft --tp 2 --dtype fp16",
      "convert ./bloom-ft ./bloom-ft4 --to ft --tp 4", "convert ./bloom-ft ./bloom-hf --to hf",
      "convert ./llama ./llama-bf16 --to hf --dtype bf16 --max-shard-size 2GB",
      "convert ./llama ./llama-ft --to ft --tp 8 --dry-run"};
  set_examples(verb, kExamples);
  return [flags] { return run_convert(*flags); };
}

}  // namespace llmctl::cli
