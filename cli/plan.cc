#include <sys/statvfs.h>

#include <cmath>
#include <filesystem>

#include "cli/commands.h"
#include "cli/conversion.h"
#include "cli/flags.h"
#include "cli/json.h"
#include "cli/output.h"
#include "cli/size.h"
#include "cli/table.h"
#include "formats/core/error.h"
#include "formats/registry.h"
#include "reshard/disk_probe.h"
#include "reshard/model.h"

namespace llmctl::cli {
namespace {

namespace fs = std::filesystem;

struct PlanFlags {
  std::string source, destination, format;
  int64_t tp = 1, jobs = 1;
  MegatronFlags megatron;
  SourceFlags about_source;
  uint64_t max_memory = 0;
  bool reshard = false, tensors = false, json = false, no_probe = false;
};

/// What a job needs and takes, in bytes and seconds.
struct Estimate {
  uint64_t read = 0, write = 0, memory = 0, disk_free = 0;
  std::string mode;                      ///< empty: the disk was not tried
  double least_rate = 0, best_rate = 0;  ///< read and written together, per second
  double seconds(double rate) const { return static_cast<double>(read + write) / rate; }
};

/// The nearest directory above `path` that exists.
fs::path existing_parent(fs::path path) {
  std::error_code ec;
  path = fs::absolute(path, ec);
  while (!fs::is_directory(path, ec) && path.has_parent_path() && path.parent_path() != path) {
    path = path.parent_path();
  }
  return path;
}

reshard::ConvertOptions resolve(const PlanFlags& flags) {
  if (flags.reshard == !flags.format.empty()) {
    throw_usage("llmctl plan", "give either --reshard or --to FORMAT",
                "--reshard keeps the source's format");
  }
  reshard::ConvertOptions options;
  options.source = flags.source;
  // Beside the source, where most results go.
  options.destination = flags.destination.empty() ? fs::path(flags.source) / ".." / "llmctl-plan"
                                                  : fs::path(flags.destination);
  options.format = flags.reshard ? reshard::format_of(flags.source) : flags.format;
  options.tp = flags.tp;
  flags.megatron.resolve(options);
  options.settings = flags.about_source.settings();
  options.family_file = flags.about_source.family_file;
  options.jobs = static_cast<int>(flags.jobs);
  if (flags.max_memory != 0) options.max_memory = flags.max_memory;
  options.plan_only = true;
  return options;
}

Estimate estimate(const reshard::Conversion& conversion, const reshard::ConvertOptions& options,
                  bool with_probe) {
  Estimate result;
  result.read = conversion.plan().bytes_in();
  result.write = conversion.bytes_to_write();
  result.memory = options.max_memory;
  const fs::path directory = existing_parent(conversion.target_path().parent_path());
  struct statvfs disk {};
  if (::statvfs(directory.c_str(), &disk) == 0) {
    result.disk_free = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
  }
  const auto& files = conversion.model().checkpoint().files;
  if (with_probe && !files.empty()) {
    const reshard::DiskRate rate =
        reshard::probe_disk(files.front().path, directory, 1.0, options.jobs);
    result.mode = reshard::write_mode_name(rate.mode);
    result.least_rate = rate.low;
    result.best_rate = rate.high;
  }
  return result;
}

std::string time_text(double seconds) {
  char text[64];
  if (seconds < 60) {
    std::snprintf(text, sizeof text, "%.1f s", seconds);
  } else {
    const auto minutes = static_cast<int64_t>(seconds / 60);
    std::snprintf(text, sizeof text, "%lld min %02lld s", static_cast<long long>(minutes),
                  static_cast<long long>(seconds - static_cast<double>(minutes) * 60));
  }
  return text;
}

void print_table(const reshard::Conversion& conversion, const Estimate& estimate,
                 const PlanFlags& flags) {
  if (flags.tensors) write_stdout(conversion.describe());
  std::vector<std::vector<std::string>> rows = {
      {"tensors", std::to_string(conversion.plan().tensors.size())},
      {"read", format_size(estimate.read)},
      {"write", format_size(estimate.write)},
      {"memory", "at most " + format_size(estimate.memory)},
      {"disk", format_size(estimate.write) + " needed, " + format_size(estimate.disk_free) +
                   " free" + (estimate.write > estimate.disk_free ? ": TOO LITTLE" : "")}};
  for (const reshard::DroppedTensor& dropped : conversion.model().dropped()) {
    rows.push_back({"dropped", printable(dropped.name) + " (" + dropped.rule + ")"});
  }
  if (!estimate.mode.empty()) {
    rows.push_back({"writing", estimate.mode});
    rows.push_back({"time", time_text(estimate.seconds(estimate.best_rate)) + " to " +
                                time_text(estimate.seconds(estimate.least_rate)) + ", at " +
                                format_size(static_cast<uint64_t>(estimate.least_rate)) + "/s to " +
                                format_size(static_cast<uint64_t>(estimate.best_rate)) +
                                "/s read and written, tried for a second"});
  }
  write_stdout(format_table(rows, "ll"));
}

void print_as_json(const reshard::Conversion& conversion, const Estimate& estimate) {
  Json json = {{"num_tensors", conversion.plan().tensors.size()},
               {"bytes_read", estimate.read},
               {"bytes_written", estimate.write},
               {"max_memory", estimate.memory},
               {"disk_free", estimate.disk_free},
               {"dropped", Json::array()},
               {"write_mode", estimate.mode.empty() ? Json() : Json(estimate.mode)},
               {"seconds_least", Json()},
               {"seconds_most", Json()}};
  for (const reshard::DroppedTensor& dropped : conversion.model().dropped()) {
    json["dropped"].push_back({{"name", printable(dropped.name)}, {"rule", dropped.rule}});
  }
  if (!estimate.mode.empty()) {
    json["seconds_least"] = estimate.seconds(estimate.best_rate);
    json["seconds_most"] = estimate.seconds(estimate.least_rate);
  }
  print_json(json);
}

ExitCode run_plan(const PlanFlags& flags) {
  const reshard::ConvertOptions options = resolve(flags);
  const reshard::Conversion conversion(options);
  for (const std::string& note : conversion.notes()) print_note(note);
  // As the job itself would, before it writes.
  reshard::check_replicas(conversion.model());
  const Estimate result = estimate(conversion, options, !flags.no_probe);
  flags.json ? print_as_json(conversion, result) : print_table(conversion, result, flags);
  return ExitCode::kDone;
}

}  // namespace

Run add_plan(CLI::App& verb) {
  const auto flags = std::make_shared<PlanFlags>();
  add_path(verb, "SRC", flags->source, "Checkpoint that would be read");
  add_path(verb, "--out", flags->destination,
           "Where the result would go (default: beside the source)");
  static constexpr std::array<std::string_view, 3> kFormats = {"hf", "ft", "megatron"};
  verb.add_flag("--reshard", flags->reshard, "Plan a reshard: the source's own format");
  add_choice(verb, "--to", flags->format, kFormats, "Plan a conversion to this format");
  add_integer(verb, "--tp,--tensor-parallel-size", flags->tp, 1, 65536, "T",
              "Tensor-parallel size of the target (default 1)");
  flags->megatron.add(verb);
  flags->about_source.add(verb);
  add_jobs(verb, flags->jobs);
  add_size(verb, "--max-memory", flags->max_memory,
           "Most memory, whatever the model's size (default 512MiB)");
  verb.add_flag("--tensors", flags->tensors, "List every target tensor and where it comes from");
  verb.add_flag("--no-probe", flags->no_probe, "Do not try the disk: no estimate of the time");
  verb.add_flag("--json", flags->json, "Print one JSON document");
  static constexpr std::array<std::string_view, 3> kExamples = {
      "plan ./yuan-102b --reshard --tp 8 --pp 1", "plan ./llama --to ft --tp 4 --tensors",
      "plan ./gpt --reshard --tp 4 --out /fast/gpt-tp4 --json"};
  set_examples(verb, kExamples);
  return [flags] { return run_plan(*flags); };
}

}  // namespace llmctl::cli
