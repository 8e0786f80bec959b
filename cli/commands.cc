#include "cli/commands.h"

#include <array>
#include <string>
#include <vector>

#include "cli/output.h"
#include "cli/processes.h"
#include "cli/suggest.h"

namespace llmctl::cli {
namespace {

constexpr std::array kCommands = {
    Command{"inspect", "Say what a checkpoint is: format, family, layout, dtypes, sizes",
            add_inspect},
    Command{"convert", "Write a checkpoint in another format, layout or dtype", add_convert, true},
    Command{"reshard", "Write a checkpoint for other tensor- and pipeline-parallel sizes",
            add_reshard, true},
    Command{"export", "Write the inference model that `run` starts from at once", add_export},
    Command{"plan", "Say what a conversion or reshard would do, need and take", add_plan},
    Command{"check", "Verify a directory that llmctl wrote against its manifest", add_check},
    Command{"diff", "Compare the weights of two checkpoints, whatever their layouts", add_diff},
    Command{"digest", "Fingerprint the weights; no layout changes it", add_digest},
    Command{"synth", "Make a checkpoint of a model's sizes with random weights", add_synth},
    Command{"run", "Generate text from a checkpoint", add_run, true},
    Command{"bench", "Measure latency and throughput against what the machine gives", add_bench},
    Command{"completion", "Print a completion script for bash, zsh or fish", add_completion},
};

/// The first argument that the parser had no place for; empty when there is none.
std::string first_stray(const CLI::App& app) {
  const std::vector<std::string> strays = app.remaining(/*recurse=*/false);
  return strays.empty() ? std::string() : strays.front();
}

std::vector<std::string> flag_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  return names;
}

[[noreturn]] void throw_unknown_verb(const std::string& name) {
  std::vector<std::string> names;
  for (const Command& command : kCommands) names.emplace_back(command.name);
  throw_usage(name.empty() ? "''" : name, "unknown command",
              did_you_mean(name, names, "run 'llmctl --help'"));
}

/// Turns CLI11's complaint into ours. CLI11 reports a missing positional before an unknown flag;
/// the unknown flag is usually the cause, so it goes first.
[[noreturn]] void throw_parse_error(const CLI::App& root, const CLI::ParseError& error) {
  const std::vector<CLI::App*> chosen = root.get_subcommands();
  if (chosen.empty()) {
    if (root.remaining_size() == 0) {
      throw_usage("", "no command given", "run 'llmctl --help'");
    }
    const std::string stray = first_stray(root);
    if (stray.empty() || stray.front() != '-') throw_unknown_verb(stray);
    throw_usage(stray, "unknown flag",
                did_you_mean(stray, flag_names(root), "run 'llmctl --help'"));
  }
  const CLI::App& verb = *chosen.front();
  const std::string help = "run 'llmctl " + verb.get_name() + " --help'";
  std::string stray = first_stray(verb);
  if (stray.empty()) stray = first_stray(root);
  if (stray.size() > 1 && stray.front() == '-') {
    const std::string flag = stray.substr(0, stray.find('='));
    throw_usage(flag, "unknown flag of 'llmctl " + verb.get_name() + "'",
                did_you_mean(flag, flag_names(verb), help));
  }
  if (!stray.empty()) {
    throw_usage("'" + stray + "'", "one argument too many for 'llmctl " + verb.get_name() + "'",
                help);
  }
  const std::string text = error.what();
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr) {
    // CLI11 says "--to: 1 required TEXT missing" or "--to: At Most 1 required but received 2".
    const std::string flag = text.substr(0, text.find(':'));
    throw_usage(
        flag,
        text.find("received") == std::string::npos ? "a value must follow" : "given more than once",
        help);
  }
  throw_usage("llmctl " + verb.get_name(), text, help);
}

}  // namespace

std::span<const Command> command_table() { return kCommands; }

std::unique_ptr<CLI::App> make_app(std::vector<Run>* runs) {
  auto app = std::make_unique<CLI::App>(
      "Convert, reshard, compare and run large language model checkpoints.", "llmctl");
  app->require_subcommand(1);
  app->set_help_flag("-h,--help", "Print this help and exit");
  app->set_version_flag("--version", "llmctl " LLMCTL_VERSION, "Print the version and exit");
  app->footer("'llmctl COMMAND --help' explains a command and shows examples.");
  app->get_formatter()->column_width(36);
  app->get_formatter()->label("SUBCOMMAND", "COMMAND");
  for (const Command& command : kCommands) {
    CLI::App* verb = app->add_subcommand(std::string(command.name), std::string(command.summary));
    verb->group("Commands");
    Run run = command.add(*verb);
    if (runs != nullptr) runs->push_back(std::move(run));
  }
  return app;
}

ExitCode run_command_line(int argc, const char* const* argv) {
  std::vector<Run> runs;
  const std::unique_ptr<CLI::App> app = make_app(&runs);
  try {
    app->parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    const std::vector<CLI::App*> chosen = app->get_subcommands();
    write_stdout(chosen.empty() ? app->help() : chosen.front()->help("llmctl"));
    return ExitCode::kDone;
  } catch (const CLI::CallForVersion& version) {
    write_stdout(std::string(version.what()) + "\n");
    return ExitCode::kDone;
  } catch (const CLI::ParseError& error) {
    throw_parse_error(*app, error);
  }
  for (size_t i = 0; i < kCommands.size(); ++i) {
    if (!app->got_subcommand(std::string(kCommands[i].name))) continue;
    if (!kCommands[i].shares_work) refuse_several_processes(std::string(kCommands[i].name));
    return runs[i]();
  }
  throw Error(ErrorCode::kInternal, "a parsed command line names no command");
}

}  // namespace llmctl::cli
