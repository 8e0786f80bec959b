#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/json.h"
#include "cli/output.h"
#include "cli/table.h"
#include "reshard/compare.h"

namespace llmctl::cli {
namespace {

struct DiffFlags {
  std::string first, second;
  SourceFlags about_source;
  int64_t jobs = 1;
  double tolerance = 0;
  bool exact = false, json = false;
};

using Kind = reshard::TensorDifference::Kind;

std::string kind_name(Kind kind) {
  switch (kind) {
    case Kind::kOnlyInFirst:
      return "only-in-first";
    case Kind::kOnlyInSecond:
      return "only-in-second";
    case Kind::kShape:
      return "shape";
    case Kind::kValues:
      return "values";
  }
  return "";
}

std::string describe(const reshard::TensorDifference& difference, const DiffFlags& flags) {
  switch (difference.kind) {
    case Kind::kOnlyInFirst:
      return "only in " + flags.first;
    case Kind::kOnlyInSecond:
      return "only in " + flags.second;
    case Kind::kShape:
      return difference.detail;
    case Kind::kValues:
      break;
  }
  char magnitude[32];
  std::snprintf(magnitude, sizeof magnitude, "%.3g", difference.max_abs);
  return with_thousands(difference.num_different) + " of " +
         with_thousands(difference.num_elements) + " values differ, by up to " + magnitude;
}

std::string verdict(const reshard::ModelDiff& result) {
  const std::string total = std::to_string(result.num_tensors) + " tensors";
  if (!result.differences.empty()) {
    return "different: " + std::to_string(result.differences.size()) + " of " + total;
  }
  std::string text = "same: " + total;
  if (result.num_rounded > 0) {
    text += ", " + std::to_string(result.num_rounded) + " of them rounded to the narrower dtype";
  }
  return text;
}

void print_text(const reshard::ModelDiff& result, const DiffFlags& flags) {
  std::vector<std::vector<std::string>> rows;
  for (const reshard::TensorDifference& difference : result.differences) {
    rows.push_back({difference.key, describe(difference, flags)});
  }
  write_stdout(format_table(rows, "ll") + verdict(result) + "\n");
}

void print_as_json(const reshard::ModelDiff& result, const DiffFlags& flags) {
  Json json = {{"first", flags.first},
               {"second", flags.second},
               {"same", result.differences.empty()},
               {"num_tensors", result.num_tensors},
               {"num_rounded", result.num_rounded},
               {"differences", Json::array()}};
  for (const reshard::TensorDifference& difference : result.differences) {
    Json row = {{"tensor", difference.key}, {"kind", kind_name(difference.kind)}};
    if (difference.kind == Kind::kShape) row["detail"] = difference.detail;
    if (difference.kind == Kind::kValues) {
      row["num_different"] = difference.num_different;
      row["num_elements"] = difference.num_elements;
      // JSON has no infinity.
      row["max_abs"] = std::isfinite(difference.max_abs) ? Json(difference.max_abs) : Json();
    }
    json["differences"].push_back(std::move(row));
  }
  print_json(json);
}

ExitCode run_diff(const DiffFlags& flags) {
  const reshard::OpenOptions open{.family_file = flags.about_source.family_file,
                                  .settings = flags.about_source.settings()};
  const reshard::Model first = reshard::open_model(flags.first, open);
  const reshard::Model second = reshard::open_model(flags.second, open);
  const reshard::ModelDiff result = reshard::diff(
      first, second,
      {.jobs = static_cast<int>(flags.jobs), .tolerance = flags.tolerance, .exact = flags.exact});
  flags.json ? print_as_json(result, flags) : print_text(result, flags);
  return result.differences.empty() ? ExitCode::kDone : ExitCode::kAnswerIsNo;
}

}  // namespace

Run add_diff(CLI::App& verb) {
  const auto flags = std::make_shared<DiffFlags>();
  add_path(verb, "A", flags->first, "First checkpoint");
  add_path(verb, "B", flags->second, "Second checkpoint, in any format, layout and dtype");
  add_real(verb, "--tolerance", flags->tolerance, 0, std::numeric_limits<double>::infinity(), "X",
           "Values that differ by at most X are the same (default 0)");
  verb.add_flag("--exact", flags->exact,
                "A value rounded to a narrower dtype is a difference; by default it is none");
  verb.add_flag("--json", flags->json, "Print one JSON document");
  add_jobs(verb, flags->jobs);
  flags->about_source.add(verb);
  static constexpr std::array<std::string_view, 3> kExamples = {
      "diff ./bloom-560m ./bloom-ft", "diff ./llama-fp32 ./llama-bf16 --exact --tolerance 0.01",
      "diff ./old ./new --json"};
  set_examples(verb, kExamples);
  return [flags] { return run_diff(*flags); };
}

}  // namespace llmctl::cli
