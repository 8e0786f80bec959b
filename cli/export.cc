#include <algorithm>
#include <array>
#include <cstdio>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/conversion.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "reshard/convert.h"

namespace llmctl::cli {
namespace {

struct ExportFlags {
  std::string source, destination, dtype, on_overflow = "error", layout = "panels16",
                                          compress = "none";
  int64_t tp = 1, pp = 1;
  QuantizationFlags quantization;
  bool verbose = false;
  SourceFlags about_source;
  WriteFlags write;
};

constexpr std::array<std::string_view, 3> kDTypes = {"fp32", "fp16", "bf16"};
constexpr std::array<std::string_view, 2> kCompressions = {"none", "zstd"};
constexpr std::array<std::string_view, 2> kLayouts = {"panels16", "rows"};
constexpr std::array<std::string_view, 3> kOverflowPolicies = {"error", "inf", "clamp"};

reshard::ConvertOptions resolve(const ExportFlags& flags) {
  reshard::ConvertOptions options;
  options.source = flags.source;
  options.destination = flags.destination;
  options.format = "export";
  options.matrix_layout = formats::read_matrix_layout(flags.layout, "--matrix-layout");
  options.compress = flags.compress == "zstd";
  options.tp = flags.tp;
  options.pp = flags.pp;
  if (!flags.dtype.empty()) options.dtype = find_dtype(flags.dtype);
  options.quantization = flags.quantization.resolve();
  options.on_overflow = overflow_policy(flags.on_overflow);
  options.family_file = flags.about_source.family_file;
  options.settings = flags.about_source.settings();
  flags.write.resolve(options);
  return options;
}

std::string percent(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f %%", 100 * value);
  return text;
}

std::string tensor_text(const reshard::QuantizationError& error) {
  std::string text = error.name;
  if (error.tp_rank > 0) text += " of rank " + std::to_string(error.tp_rank);
  return text;
}

/// How far the integers are from the weights: of all tensors, the worst, and each when asked.
void report_errors(const std::vector<reshard::QuantizationError>& errors, bool verbose) {
  if (errors.empty()) return;
  if (verbose) {
    for (const reshard::QuantizationError& error : errors) {
      char largest[32];
      std::snprintf(largest, sizeof largest, "%.3g", error.max_error);
      write_stderr("llmctl: " + tensor_text(error) + ": relative RMS error " +
                   percent(error.relative_rms) + ", largest error " + largest + "\n");
    }
  }
  std::vector<const reshard::QuantizationError*> worst;
  for (const reshard::QuantizationError& error : errors) worst.push_back(&error);
  const size_t shown = std::min<size_t>(3, worst.size());
  std::partial_sort(worst.begin(), worst.begin() + static_cast<std::ptrdiff_t>(shown), worst.end(),
                    [](const auto* a, const auto* b) { return a->relative_rms > b->relative_rms; });
  std::string text = "llmctl: quantised " + std::to_string(errors.size()) +
                     " matrices: relative RMS error " +
                     percent(reshard::total_relative_rms(errors)) + ", worst ";
  for (size_t i = 0; i < shown; ++i) {
    text += (i == 0 ? "" : ", ") + tensor_text(*worst[i]) + " " + percent(worst[i]->relative_rms);
  }
  write_stderr(text + "\n");
}

ExitCode run_export(const ExportFlags& flags) {
  reshard::Conversion conversion(resolve(flags));
  reshard::ConvertSummary summary;
  const ExitCode code =
      carry_out(conversion, flags.write, flags.on_overflow, nullptr, true, &summary);
  report_errors(summary.quantization_errors, flags.verbose);
  return code;
}

}  // namespace

Run add_export(CLI::App& verb) {
  const auto flags = std::make_shared<ExportFlags>();
  add_path(verb, "SRC", flags->source, "Checkpoint to read: a directory or a weights file");
  add_path(verb, "DST", flags->destination, "Directory to make");
  add_integer(verb, "--tp,--tensor-parallel-size", flags->tp, 1, 65536, "T",
              "Tensor-parallel size that the model will run at (default 1)");
  add_integer(verb, "--pp,--pipeline-parallel-size", flags->pp, 1, 65536, "P",
              "Pipeline-parallel size that the model will run at (default 1)");
  add_choice(verb, "--dtype", flags->dtype, kDTypes,
             "Data type of the matrices (default: as stored); vectors are F32");
  flags->quantization.add(verb);
  verb.add_flag("--verbose", flags->verbose, "Print the error of every matrix that is quantised");
  add_choice(verb, "--on-overflow", flags->on_overflow, kOverflowPolicies,
             "Values beyond the target's range: stop (default), make infinite or clamp");
  add_choice(verb, "--matrix-layout", flags->layout, kLayouts,
             "As the CPU reads matrices (default), or row by row for other programs");
  add_choice(verb, "--compress", flags->compress, kCompressions,
             "Compress the ranks' files, for shipping: run then reads instead of mapping them");
  flags->about_source.add(verb);
  flags->write.add(verb);
  static constexpr std::array<std::string_view, 6> kExamples = {
      "export ./llama ./llama-run",
      "export ./bloom-ft/2-gpu ./bloom-run --tp 4 --dtype bf16",
      "export ./llama ./llama-int4 --quant int4 --group-size 64",
      "export ./llama ./llama-ship --tp 2 --compress zstd",
      "export ./yuan-megatron ./yuan-run --tp 2 --pp 2",
      "export ./llama ./llama-run --dry-run"};
  set_examples(verb, kExamples);
  return [flags] { return run_export(*flags); };
}

}  // namespace llmctl::cli
