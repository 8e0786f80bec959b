#include "cli/commands.h"
#include "cli/conversion.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "cli/processes.h"
#include "formats/core/atomic_directory.h"
#include "formats/registry.h"

namespace llmctl::cli {
namespace {

struct ReshardFlags {
  std::string source, destination, via;
  int64_t tp = 1;
  MegatronFlags megatron;
  SourceFlags about_source;
  WriteFlags write;
};

reshard::ConvertOptions resolve(const ReshardFlags& flags) {
  reshard::ConvertOptions options;
  options.source = flags.source;
  options.destination = flags.destination;
  options.format = reshard::format_of(flags.source);
  if (options.format == "hf") {
    throw_usage(flags.source, "a Hugging Face directory is not split over ranks",
                "convert it: llmctl convert SRC DST --to megatron --tp T --pp P");
  }
  if (options.format == "deepspeed") {
    throw_usage(flags.source, "llmctl reads Megatron-DeepSpeed's files and does not write them",
                "convert it: llmctl convert SRC DST --to megatron --tp T --pp P");
  }
  options.tp = flags.tp;
  flags.megatron.resolve(options);
  options.settings = flags.about_source.settings();
  options.family_file = flags.about_source.family_file;
  flags.write.resolve(options);
  return options;
}

/// Neither directory may be, or lie in, the other one.
void check_apart(const std::string& destination, const std::string& via) {
  const auto whole = [](const std::string& path) {
    return without_trailing_slash(std::filesystem::weakly_canonical(path));
  };
  const std::filesystem::path a = whole(destination), b = whole(via);
  const auto [end_a, end_b] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  if (end_a != a.end() && end_b != b.end()) return;
  throw_usage("--via " + printable(via, 200), "is, holds or lies in the destination",
              "name a directory beside it");
}

ExitCode run_reshard(const ReshardFlags& flags, ProcessGroup* group) {
  reshard::ConvertOptions options = resolve(flags);
  options.group = group;
  // Both outputs are checked before the first is written.
  reshard::Conversion conversion(options);
  if (!flags.via.empty()) {
    // The same source, the target's tensor-parallel size, the source's pipeline.
    reshard::ConvertOptions between = options;
    between.destination = flags.via;
    between.pipeline_blocks.clear();
    between.virtual_pp = 1;
    between.keep_pipeline = true;
    check_apart(flags.destination, flags.via);
    reshard::Conversion first(between);
    carry_out(first, flags.write, "inf", group);
  }
  return carry_out(conversion, flags.write, "inf", group);
}

}  // namespace

Run add_reshard(CLI::App& verb) {
  const auto flags = std::make_shared<ReshardFlags>();
  add_path(verb, "SRC", flags->source,
           "Checkpoint to read: a Megatron, Yuan 2.0 or FasterTransformer directory");
  add_path(verb, "DST", flags->destination, "Directory to make, in the same format");
  add_integer(verb, "--tp,--tensor-parallel-size", flags->tp, 1, 65536, "T",
              "Tensor-parallel size of the target (default 1)");
  flags->megatron.add(verb);
  add_path(verb, "--via", flags->via,
           "Also write the checkpoint between: the target's tp at the source's pp");
  flags->about_source.add(verb);
  flags->write.add(verb);
  static constexpr std::array<std::string_view, 4> kExamples = {
      "reshard ./yuan-102b ./yuan-102b-tp8 --tp 8 --pp 1",
      "reshard ./yuan-51b ./served --tp 4 --pp 1 --via ./yuan-51b-tp4",
      "reshard ./gpt ./gpt-pp4 --tp 2 --pp 4 --pipeline-blocks 5,7,7,5",
      "reshard ./gpt-ft/2-gpu ./gpt-ft --tp 4"};
  set_examples(verb, kExamples);
  verb.footer(verb.get_footer() +
              "\n\nSeveral hosts: mpirun -n 8 llmctl reshard ./yuan-102b ./yuan-102b-tp8 --tp 8");
  return [flags] {
    return share_work([&](runtime::ProcessLink* group) { return run_reshard(*flags, group); });
  };
}

}  // namespace llmctl::cli
