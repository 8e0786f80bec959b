#include "reshard/convert.h"

#include <array>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/conversion.h"
#include "cli/flags.h"
#include "cli/processes.h"
#include "formats/registry.h"

namespace llmctl::cli {
namespace {

struct ConvertFlags {
  std::string source, destination, format, dtype, on_overflow = "inf", model_name;
  SourceFlags about_source;
  int64_t tp = 1;
  MegatronFlags megatron;
  WriteFlags write;
  uint64_t max_shard_bytes = 0;
  bool ft_exact = false;
};

constexpr std::array<std::string_view, 3> kOverflowPolicies = {"error", "inf", "clamp"};

std::vector<std::string_view> writable_formats() {
  std::vector<std::string_view> names;
  for (const formats::Format& format : formats::format_table()) {
    if (format.place != nullptr && format.name != "export") names.push_back(format.name);
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
  flags.megatron.resolve(options);
  if (!flags.dtype.empty()) options.dtype = find_dtype(flags.dtype);
  options.on_overflow = overflow_policy(flags.on_overflow);
  options.ft_exact = flags.ft_exact;
  options.model_name = flags.model_name;
  if (flags.max_shard_bytes != 0) options.max_shard_bytes = flags.max_shard_bytes;
  options.family_file = flags.about_source.family_file;
  options.settings = flags.about_source.settings();
  flags.write.resolve(options);
  return options;
}

ExitCode run_convert(const ConvertFlags& flags) {
  return share_work([&](runtime::ProcessLink* group) {
    reshard::ConvertOptions options = resolve(flags);
    options.group = group;
    reshard::Conversion conversion(options);
    return carry_out(conversion, flags.write, flags.on_overflow, group);
  });
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
  flags->megatron.add(verb);
  add_choice(verb, "--dtype", flags->dtype, writable_dtypes(),
             "Data type to write (default: as stored)");
  add_choice(verb, "--on-overflow", flags->on_overflow, kOverflowPolicies,
             "Values beyond the target's range: stop, make infinite (default) or clamp");
  add_size(verb, "--max-shard-size", flags->max_shard_bytes,
           "Largest weights file of --to hf (default 5GB)");
  verb.add_flag("--ft-exact", flags->ft_exact,
                "Write config.ini exactly as FasterTransformer's own converters do");
  verb.add_option("--model-name", flags->model_name,
                  "Name to write into config.ini (default: the source's)")
      ->type_name("NAME");
  flags->about_source.add(verb);
  flags->write.add(verb);
  static constexpr std::array<std::string_view, 6> kExamples = {
      "convert ./bloom-560m ./bloom-ft --to ft --tp 2 --dtype fp16",
      "convert ./bloom-ft ./bloom-ft4 --to ft --tp 4",
      "convert ./bloom-ft ./bloom-hf --to hf",
      "convert ./llama ./llama-bf16 --to hf --dtype bf16 --max-shard-size 2GB",
      "convert ./llama ./llama-ft --to ft --tp 8 --dry-run",
      "convert ./llama ./llama-megatron --to megatron --tp 8 --pp 2"};
  set_examples(verb, kExamples);
  return [flags] { return run_convert(*flags); };
}

}  // namespace llmctl::cli
