#include "cli/flags.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <vector>

#include "cli/processes.h"
#include "cli/size.h"
#include "cli/suggest.h"
#include "formats/core/error.h"
#include "formats/core/thread_pool.h"

namespace llmctl::cli {
namespace {

/// "--tp" of "--tp,--tensor-parallel-size"; the name that messages use.
std::string first_name(const std::string& names) { return names.substr(0, names.find(',')); }

std::string where(const std::string& flag, const std::string& value) {
  return flag + " " + (value.empty() ? "''" : value);
}

template <typename T>
bool parse_whole(const std::string& text, T& value) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end;
}

/// A validator sees the raw text before CLI11 converts it, and throws our own error.
template <typename Check>
CLI::Option* check_with(CLI::Option* option, Check check) {
  return option->check(CLI::Validator(
      [check](std::string& value) {
        check(value);
        return std::string();
      },
      ""));
}

void refuse_empty(const std::string& flag, const std::string& path) {
  if (path.empty()) throw_usage(flag, "the path is empty", "give a file or a directory");
}

std::string range_text(const std::string& kind, const std::string& low, const std::string& high) {
  return "not a " + kind + (high.empty() ? " of at least " + low : " from " + low + " to " + high);
}

/// "0.5", not "0.500000".
std::string number_text(double value) {
  char buffer[32];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof buffer, value);
  return error == std::errc() ? std::string(buffer, end) : std::to_string(value);
}

}  // namespace

CLI::Option* add_path(CLI::App& verb, const std::string& name, std::string& target,
                      const std::string& description) {
  CLI::Option* option = verb.add_option(name, target, description)->type_name("PATH");
  if (name.front() != '-') option->required()->type_name("");
  const std::string flag = first_name(name);
  return check_with(option, [flag](const std::string& value) { refuse_empty(flag, value); });
}

CLI::Option* add_paths(CLI::App& verb, const std::string& name, std::vector<std::string>& target,
                       const std::string& description) {
  CLI::Option* option =
      verb.add_option(name, target, description)->required()->type_name("")->expected(1, -1);
  return check_with(option, [name](const std::string& value) { refuse_empty(name, value); });
}

int64_t cores_for_this_process() {
  const int64_t processes = processes_on_host(), cores = available_cores();
  // A launcher that binds processes to cores has divided them already.
  const bool is_bound = cores < ::sysconf(_SC_NPROCESSORS_ONLN);
  return is_bound ? cores : std::max<int64_t>(1, cores / processes);
}

CLI::Option* add_jobs(CLI::App& verb, int64_t& target, int64_t least) {
  target = std::max(cores_for_this_process(), least / processes_on_host());
  return add_integer(verb, "--jobs,-j", target, 1, 1024, "N",
                     "Threads (default: one per core" +
                         (least > 1 ? ", at least " + std::to_string(least) : std::string()) +
                         "); the result does not depend on it");
}

void add_verify(CLI::App& verb, VerifyFlags& target) {
  static constexpr std::array<std::string_view, 3> kModes = {"pass", "readback", "none"};
  CLI::Option* mode = add_choice(verb, "--verify", target.mode, kModes,
                                 "Compare digests of source and target in passing (default), read "
                                 "the output back too, or neither");
  verb.add_flag("--no-verify", target.none, "The same as --verify none")->excludes(mode);
}

void QuantizationFlags::add(CLI::App& verb) {
  static constexpr std::array<std::string_view, 3> kMethods = {"int8", "int4", "none"};
  add_choice(verb, "--quant", method, kMethods,
             "Hold the layers' matrices as integers with scales, or not (default: as stored)");
  add_integer(verb, "--group-size", group_size, 0, 256, "N",
              "Columns that share a scale: 32, 64, 128, 256, or 0 for all of a row (default: 0 for "
              "int8, 64 for int4)");
}

std::optional<kernels::Quantization> QuantizationFlags::resolve() const {
  if (group_size >= 0 && method != "int8" && method != "int4") {
    throw_usage("--group-size", "says how integers are scaled", "give --quant int8 or int4 too");
  }
  if (method.empty()) return std::nullopt;
  if (method == "none") return kernels::Quantization{};
  const bool is_int8 = method == "int8";
  return kernels::Quantization{is_int8 ? 8 : 4, group_size >= 0 ? group_size : is_int8 ? 0 : 64};
}

CLI::Option* add_progress(CLI::App& verb, std::string& target) {
  static constexpr std::array<std::string_view, 3> kStyles = {"auto", "json", "none"};
  target = "auto";
  return add_choice(verb, "--progress", target, kStyles,
                    "How to tell progress on stderr: on a terminal only (default), one JSON "
                    "object a line, or not at all");
}

ProgressStyle progress_style(const std::string& name) {
  if (name == "json") return ProgressStyle::kJson;
  return name == "none" ? ProgressStyle::kNone : ProgressStyle::kTerminal;
}

void SourceFlags::add(CLI::App& verb) {
  add_path(verb, "--family-file", family_file,
           "Describe the model family in this file (docs/adding-a-family.md)");
  verb.add_option("--set", set,
                  "Say or correct what a Megatron checkpoint's args do not say, e.g. "
                  "num_attention_heads=32 or checkpoint_version=3.0; may be repeated")
      ->type_name("ARG=VALUE")
      ->allow_extra_args(false);
  add_integer(verb, "--vocab-size", vocab_size, 1, int64_t{1} << 31, "N",
              "Rows of a Megatron checkpoint's vocabulary that are no padding");
}

std::map<std::string, std::string> SourceFlags::settings() const {
  std::map<std::string, std::string> settings;
  for (const std::string& text : set) {
    const size_t equals = text.find('=');
    if (equals == 0 || equals == std::string::npos || equals + 1 == text.size()) {
      throw_usage("--set " + printable(text, 100), "must be ARG=VALUE",
                  "for example num_attention_heads=32");
    }
    settings[text.substr(0, equals)] = text.substr(equals + 1);
  }
  if (vocab_size != 0) settings["vocab_size"] = std::to_string(vocab_size);
  return settings;
}

CLI::Option* add_integer(CLI::App& verb, const std::string& names, int64_t& target, int64_t min,
                         int64_t max, const std::string& metavar, const std::string& description) {
  const std::string flag = first_name(names);
  const bool bounded = max != std::numeric_limits<int64_t>::max();
  CLI::Option* option = verb.add_option(names, target, description)->type_name(metavar);
  return check_with(option, [=](const std::string& value) {
    int64_t number = 0;
    if (!parse_whole(value, number) || number < min || number > max) {
      throw_usage(where(flag, value), range_text("whole number", std::to_string(min),
                                                 bounded ? std::to_string(max) : ""));
    }
  });
}

CLI::Option* add_real(CLI::App& verb, const std::string& names, double& target, double min,
                      double max, const std::string& metavar, const std::string& description) {
  const std::string flag = first_name(names);
  CLI::Option* option = verb.add_option(names, target, description)->type_name(metavar);
  return check_with(option, [=](const std::string& value) {
    double number = 0;
    if (!parse_whole(value, number) || !std::isfinite(number) ||
        !(number >= min && number <= max)) {
      const bool bounded = max != std::numeric_limits<double>::infinity();
      throw_usage(where(flag, value),
                  range_text("number", number_text(min), bounded ? number_text(max) : ""));
    }
  });
}

CLI::Option* add_choice(CLI::App& verb, const std::string& names, std::string& target,
                        std::span<const std::string_view> choices, const std::string& description) {
  const std::string flag = first_name(names);
  const std::vector<std::string> known(choices.begin(), choices.end());
  std::string list;
  for (const std::string& choice : known) list += (list.empty() ? "" : ",") + choice;
  CLI::Option* option = verb.add_option(names, target, description)->type_name("{" + list + "}");
  return check_with(option, [flag, known, list](const std::string& value) {
    for (const std::string& choice : known) {
      if (value == choice) return;
    }
    throw_usage(where(flag, value), "not one of " + list,
                closest_name(value, known) ? did_you_mean(value, known, "") : "");
  });
}

CLI::Option* add_size(CLI::App& verb, const std::string& names, uint64_t& target,
                      const std::string& description) {
  const std::string flag = first_name(names);
  CLI::Option* option = verb.add_option_function<std::string>(
      names,
      [&target, flag](const std::string& value) {
        const std::optional<uint64_t> bytes = parse_size(value);
        if (!bytes || *bytes == 0) {
          throw_usage(where(flag, value), "not a size", "write it like 500MB, 5GB or 4GiB");
        }
        target = *bytes;
      },
      description);
  return option->type_name("SIZE");
}

void set_examples(CLI::App& verb, std::span<const std::string_view> examples) {
  std::string text = "Examples:";
  for (const std::string_view example : examples) text += "\n  llmctl " + std::string(example);
  verb.footer(text);
}

}  // namespace llmctl::cli
