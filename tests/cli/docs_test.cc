// The documents and the flag tree say the same.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/completion.h"
#include "reshard/canonical.h"
#include "reshard/config_fields.h"
#include "reshard/families/family.h"
#include "tests/support/test_data.h"

namespace llmctl::cli {
namespace {

std::string document(const std::string& name) {
  std::ifstream stream(test::source_root() / name);
  REQUIRE(stream.good());
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// The part of docs/cli.md under "## llmctl VERB", up to the next heading of that depth.
std::string section_of(const std::string& text, const std::string& verb) {
  const std::string heading = "\n## llmctl " + verb + "\n";
  const size_t start = text.find(heading);
  if (start == std::string::npos) return {};
  return text.substr(start, text.find("\n## ", start + 1) - start);
}

std::set<std::string> flags_in(const std::string& text) {
  static const std::regex kFlag("--[a-z][a-z0-9-]*");
  std::set<std::string> flags;
  for (std::sregex_iterator it(text.begin(), text.end(), kFlag), end; it != end; ++it) {
    flags.insert(it->str());
  }
  return flags;
}

std::set<std::string> flags_of(const CLI::App& app) {
  std::set<std::string> flags;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) flags.insert("--" + name);
  }
  return flags;
}

}  // namespace

TEST_CASE("docs: cli.md describes every flag of every verb and no other") {
  const std::string text = document("docs/cli.md");
  const std::unique_ptr<CLI::App> app = make_app();
  for (const Command& command : command_table()) {
    const std::string verb(command.name);
    CAPTURE(verb);
    const std::string section = section_of(text, verb);
    REQUIRE_FALSE(section.empty());
    const std::set<std::string> described = flags_in(section);
    const std::set<std::string> declared = flags_of(*app->get_subcommand(verb));
    for (const std::string& flag : declared) {
      CAPTURE(flag);
      CHECK((flag == "--help" || described.count(flag) == 1));
    }
    for (const std::string& flag : described) {
      CAPTURE(flag);
      CHECK(declared.count(flag) == 1);
    }
  }
}

TEST_CASE("docs: README shows every verb") {
  const std::string text = document("README.md");
  for (const Command& command : command_table()) {
    CAPTURE(command.name);
    CHECK(text.find("llmctl " + std::string(command.name)) != std::string::npos);
  }
}

TEST_CASE("docs: errors.md lists every exit code") {
  const std::string text = document("docs/errors.md");
  for (const ExitCode code :
       {ExitCode::kDone, ExitCode::kAnswerIsNo, ExitCode::kUsage, ExitCode::kInputRejected,
        ExitCode::kEnvironment, ExitCode::kInternal, ExitCode::kInterrupted}) {
    CAPTURE(exit_status(code));
    CHECK(text.find("\n| " + std::to_string(exit_status(code)) + " |") != std::string::npos);
  }
}

TEST_CASE("docs: the family file of adding-a-family.md is one and its field list is complete") {
  const std::string text = document("docs/adding-a-family.md");
  const size_t start = text.find("```json\n");
  REQUIRE(start != std::string::npos);
  const std::string example = text.substr(start + 8, text.find("```", start + 8) - start - 8);
  const auto family = reshard::UserFamily::parse(example, "the example");
  CHECK(family->family().name == "internlm2");
  CHECK(family->family().tensors.size() == 12);
  for (const reshard::ConfigField& field : reshard::config_field_table()) {
    CAPTURE(field.name);
    CHECK(text.find("`" + std::string(field.name) + "`") != std::string::npos);
  }
  for (const reshard::CanonicalTensor& tensor : reshard::canonical_table()) {
    CAPTURE(tensor.name);
    CHECK(
        (tensor.auxiliary || text.find("`" + std::string(tensor.name) + "`") != std::string::npos));
  }
}

TEST_CASE("docs: every link to a file of the repository leads to one") {
  namespace fs = std::filesystem;
  static const std::regex kLink("\\]\\(([^)#:]+)(#[^)]*)?\\)");
  const fs::path root = test::source_root();
  std::vector<fs::path> pages = {root / "README.md", root / "samples" / "README.md"};
  for (const auto& entry : fs::recursive_directory_iterator(root / "docs")) {
    if (entry.path().extension() == ".md") pages.push_back(entry.path());
  }
  for (const fs::path& page : pages) {
    CAPTURE(page.string());
    const std::string text = document(page.lexically_relative(root).string());
    for (std::sregex_iterator it(text.begin(), text.end(), kLink), end; it != end; ++it) {
      const std::string target = (*it)[1].str();
      CAPTURE(target);
      CHECK(fs::exists(page.parent_path() / target));
    }
  }
}

TEST_CASE("help: every verb explains its flags and shows examples of itself") {
  const std::unique_ptr<CLI::App> app = make_app();
  for (const Command& command : command_table()) {
    CAPTURE(command.name);
    const CLI::App* verb = app->get_subcommand(std::string(command.name));
    CHECK(verb->get_footer().find("Examples:\n  llmctl " + std::string(command.name)) !=
          std::string::npos);
    for (const CLI::Option* option : verb->get_options()) {
      CAPTURE(option->get_name());
      CHECK_FALSE(option->get_description().empty());
    }
  }
}

TEST_CASE("completion: every shell's script knows every verb and long flag") {
  const std::unique_ptr<CLI::App> app = make_app();
  const std::string bash = bash_completion(*app), zsh = zsh_completion(*app),
                    fish = fish_completion(*app);
  for (const Command& command : command_table()) {
    const CLI::App* verb = app->get_subcommand(std::string(command.name));
    for (const CLI::Option* option : verb->get_options()) {
      for (const std::string& name : option->get_lnames()) {
        CAPTURE(name);
        CHECK(bash.find("--" + name) != std::string::npos);
        CHECK(zsh.find("--" + name) != std::string::npos);
        CHECK(fish.find(" -l " + name + " ") != std::string::npos);
      }
    }
  }
}

}  // namespace llmctl::cli
