#include <array>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/conversion.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "formats/registry.h"
#include "reshard/convert.h"
#include "reshard/geometries.h"

namespace llmctl::cli {
namespace {

struct SynthFlags {
  std::string destination, family, geometry, format, dtype;
  std::vector<std::string> settings;
  int64_t tp = 1, seed = 0;
  MegatronFlags megatron;
  uint64_t max_shard_bytes = 0;
  WriteFlags write;
  bool sparse = false;
};

std::vector<std::string_view> geometry_names() {
  std::vector<std::string_view> names;
  for (const reshard::ModelGeometry& geometry : reshard::geometry_table()) {
    names.push_back(geometry.name);
  }
  return names;
}

std::vector<std::string_view> family_names() {
  std::vector<std::string_view> names;
  for (const reshard::Family& family : reshard::family_table()) names.push_back(family.name);
  return names;
}

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

/// Stages as the model was trained, unless others are asked for (pp is 0 when none are); one when
/// it has other layers or another format.
void choose_stages(reshard::ConvertOptions& options, const reshard::ModelGeometry* geometry) {
  const int64_t asked = options.pp;
  if (asked == 0) options.pp = 1;
  if (geometry == nullptr || options.format != "megatron") return;
  const ModelConfig trained = make_config(*options.synth->family, geometry, {});
  if (trained.num_hidden_layers != options.synth->config.num_hidden_layers) return;
  if (asked != 0 && (asked != geometry->pp || options.virtual_pp != 1)) return;
  options.pp = geometry->pp;
  if (options.pipeline_blocks.empty()) options.pipeline_blocks = geometry->blocks();
}

reshard::ConvertOptions resolve(const SynthFlags& flags) {
  const reshard::ModelGeometry* geometry =
      flags.geometry.empty() ? nullptr : reshard::find_geometry(flags.geometry);
  if (geometry == nullptr && flags.family.empty()) {
    throw_usage("llmctl synth", "no model is named",
                "give --geometry, such as llama-7b, or --family");
  }
  if (geometry != nullptr && !flags.family.empty() && flags.family != geometry->family) {
    throw_usage("--family " + flags.family,
                "geometry " + flags.geometry + " is of family " + std::string(geometry->family),
                "leave --family out");
  }
  const std::string_view name = geometry != nullptr ? geometry->family : flags.family;
  const reshard::Family* family = reshard::find_family_by_name(name);
  if (family == nullptr) {
    throw Error(ErrorCode::kInternal, "no family of this name", std::string(name));
  }
  reshard::ConvertOptions options;
  options.source = geometry != nullptr ? flags.geometry : flags.family;
  options.destination = flags.destination;
  options.format = flags.format;
  options.tp = flags.tp;
  reshard::SynthSource& synth = options.synth.emplace();
  synth.family = family;
  synth.config = make_config(*family, geometry, flags.settings);
  synth.dtype = geometry != nullptr ? geometry->dtype : synth.config.dtype;
  if (!flags.dtype.empty()) synth.dtype = *find_dtype(flags.dtype);
  synth.config.dtype = synth.dtype;
  synth.seed = static_cast<uint64_t>(flags.seed);
  synth.sparse = flags.sparse;
  if (flags.max_shard_bytes != 0) options.max_shard_bytes = flags.max_shard_bytes;
  flags.write.resolve(options);
  flags.megatron.resolve(options);
  choose_stages(options, geometry);
  return options;
}

ExitCode run_synth(const SynthFlags& flags) {
  reshard::Conversion conversion(resolve(flags));
  if (flags.sparse && !flags.write.dry_run) {
    print_note("tensors are holes of zeros, which take no room on the disk");
  }
  return carry_out(conversion, flags.write, "inf", nullptr, !flags.sparse);
}

}  // namespace

Run add_synth(CLI::App& verb) {
  const auto flags = std::make_shared<SynthFlags>();
  flags->megatron.pp = 0;  // as the model was trained
  add_path(verb, "DST", flags->destination,
           "Directory to make; --to ft puts N-gpu into it unless it has that name itself");
  add_choice(verb, "--geometry", flags->geometry, geometry_names(), "Model whose sizes to take");
  add_choice(verb, "--family", flags->family, family_names(),
             "Family without a geometry; its defaults are small or those of its first model");
  verb.add_option("--set", flags->settings,
                  "Another value for a size or property, such as num_hidden_layers=4; repeatable")
      ->type_name("FIELD=VALUE")
      ->expected(1)
      ->take_all();
  add_choice(verb, "--to", flags->format, writable_formats(), "Format to write")->required();
  add_integer(verb, "--tp,--tensor-parallel-size", flags->tp, 1, 65536, "T",
              "Tensor-parallel size (default 1)");
  flags->megatron.add(verb, /*has_source=*/false);
  verb.get_option("--pp")->description(
      "Pipeline stages of a Megatron target (default: as the model was trained, else 1)");
  add_choice(verb, "--dtype", flags->dtype, writable_dtypes(),
             "Data type of all tensors (default: the published model's)");
  add_integer(verb, "--seed", flags->seed, 0, INT64_MAX, "N",
              "Seed of the weights (default 0); the same weights in every layout");
  verb.add_flag("--sparse", flags->sparse,
                "Leave holes of zeros where tensors lie: real headers, next to no disk space");
  add_size(verb, "--max-shard-size", flags->max_shard_bytes,
           "Largest weights file of --to hf (default 5GB)");
  add_jobs(verb, flags->write.jobs);
  add_progress(verb, flags->write.progress);
  verb.add_flag("--overwrite", flags->write.overwrite,
                "Replace DST when it exists, once all is made");
  verb.add_flag("--dry-run", flags->write.dry_run, "Print the plan and write nothing");
  static constexpr std::array<std::string_view, 3> kExamples = {
      "synth ./tiny --geometry llama-7b --set num_hidden_layers=2 --to hf",
      "synth ./ft --geometry bloom-560m --to ft --tp 2 --seed 7",
      "synth ./big --geometry yuan-102b --to megatron --sparse"};
  set_examples(verb, kExamples);
  return [flags] { return run_synth(*flags); };
}

}  // namespace llmctl::cli
