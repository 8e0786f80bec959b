#include <array>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/conversion.h"
#include "cli/flags.h"
#include "reshard/convert.h"

namespace llmctl::cli {
namespace {

struct ExportFlags {
  std::string source, destination, dtype, on_overflow = "error", layout = "panels16",
                                          compress = "none";
  int64_t tp = 1, pp = 1;
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
  options.on_overflow = overflow_policy(flags.on_overflow);
  options.family_file = flags.about_source.family_file;
  options.settings = flags.about_source.settings();
  flags.write.resolve(options);
  return options;
}

ExitCode run_export(const ExportFlags& flags) {
  reshard::Conversion conversion(resolve(flags));
  return carry_out(conversion, flags.write, flags.on_overflow);
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
  add_choice(verb, "--on-overflow", flags->on_overflow, kOverflowPolicies,
             "Values beyond the target's range: stop (default), make infinite or clamp");
  add_choice(verb, "--matrix-layout", flags->layout, kLayouts,
             "As the CPU reads matrices (default), or row by row for other programs");
  add_choice(verb, "--compress", flags->compress, kCompressions,
             "Compress the ranks' files, for shipping: run then reads instead of mapping them");
  flags->about_source.add(verb);
  flags->write.add(verb);
  static constexpr std::array<std::string_view, 5> kExamples = {
      "export ./llama ./llama-run", "export ./bloom-ft/2-gpu ./bloom-run --tp 4 --dtype bf16",
      "export ./llama ./llama-ship --tp 2 --compress zstd",
      "export ./yuan-megatron ./yuan-run --tp 2 --pp 2", "export ./llama ./llama-run --dry-run"};
  set_examples(verb, kExamples);
  return [flags] { return run_export(*flags); };
}

}  // namespace llmctl::cli
