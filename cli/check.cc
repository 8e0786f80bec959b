#include <array>
#include <atomic>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/json.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/size.h"
#include "reshard/manifest.h"

namespace llmctl::cli {
namespace {

struct CheckFlags {
  std::string path, progress;
  int64_t jobs = 1;
  bool json = false;
};

using Kind = reshard::CheckFault::Kind;

std::string kind_name(Kind kind) {
  switch (kind) {
    case Kind::kMissing:
      return "missing";
    case Kind::kUnreadable:
      return "unreadable";
    case Kind::kSize:
      return "size";
    case Kind::kDigest:
      return "digest";
    case Kind::kManifest:
      return "manifest";
  }
  return "";
}

std::string describe(const reshard::CheckFault& fault) {
  switch (fault.kind) {
    case Kind::kMissing:
      return "missing";
    case Kind::kUnreadable:
      return "cannot be read: " + fault.found;
    case Kind::kSize:
      return fault.found + " bytes, expected " + fault.expected;
    case Kind::kDigest:
      return "digest " + fault.found + ", expected " + fault.expected;
    case Kind::kManifest:
      return "was changed or cut short: its own digest does not match";
  }
  return "";
}

std::string verdict(const reshard::CheckResult& result) {
  if (result.faults.empty()) {
    return "intact: " + std::to_string(result.num_files) + " files, " +
           format_size(result.size_bytes);
  }
  if (result.faults.front().kind == Kind::kManifest) {
    return "damaged: the manifest cannot be trusted, so nothing else was looked at";
  }
  return "damaged: " + std::to_string(result.faults.size()) + " of " +
         std::to_string(result.num_files) + " files";
}

void print_result_json(const reshard::CheckResult& result) {
  Json json = {{"path", result.directory.string()}, {"intact", result.faults.empty()},
               {"num_files", result.num_files},     {"size_bytes", result.size_bytes},
               {"faults", Json::array()},           {"extra", result.extra}};
  for (const reshard::CheckFault& fault : result.faults) {
    json["faults"].push_back({{"file", fault.file},
                              {"kind", kind_name(fault.kind)},
                              {"expected", fault.expected},
                              {"found", fault.found}});
  }
  print_json(json);
}

void note_extra_files(const std::vector<std::string>& names) {
  constexpr size_t kMostNotes = 10;
  for (size_t i = 0; i < names.size() && i < kMostNotes; ++i) {
    print_note(names[i] + ": the manifest does not know this file");
  }
  if (names.size() > kMostNotes) {
    print_note("and so of " + std::to_string(names.size() - kMostNotes) + " more files");
  }
}

ExitCode run_check(const CheckFlags& flags) {
  reshard::CheckResult result;
  {
    Progress progress("checking", progress_style(flags.progress));
    uint64_t total = 0;
    std::atomic<uint64_t> done{0};
    reshard::CheckOptions options;
    options.jobs = static_cast<int>(flags.jobs);
    options.total = [&](uint64_t bytes) { total = bytes; };
    options.progress = [&](uint64_t bytes) {
      progress.update(done.fetch_add(bytes, std::memory_order_relaxed) + bytes, total);
    };
    result = reshard::check_directory(flags.path, options);
  }
  note_extra_files(result.extra);
  if (flags.json) {
    print_result_json(result);
  } else {
    std::string text;
    for (const reshard::CheckFault& fault : result.faults) {
      text += printable(fault.file, 4000) + ": " + printable(describe(fault)) + "\n";
    }
    write_stdout(text + verdict(result) + "\n");
  }
  return result.faults.empty() ? ExitCode::kDone : ExitCode::kAnswerIsNo;
}

}  // namespace

Run add_check(CLI::App& verb) {
  const auto flags = std::make_shared<CheckFlags>();
  add_path(verb, "DIR", flags->path, "Directory that llmctl wrote, or the one above it");
  verb.add_flag("--json", flags->json, "Print one JSON document");
  add_jobs(verb, flags->jobs);
  add_progress(verb, flags->progress);
  static constexpr std::array<std::string_view, 2> kExamples = {"check ./bloom-ft",
                                                                "check ./llama-bf16 --json"};
  set_examples(verb, kExamples);
  return [flags] { return run_check(*flags); };
}

}  // namespace llmctl::cli
