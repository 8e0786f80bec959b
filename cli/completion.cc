#include "cli/completion.h"

#include <array>
#include <string_view>
#include <vector>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/output.h"

namespace llmctl::cli {
namespace {

/// What an option expects after it, as cli/flags.h encodes it in the type name.
struct Value {
  enum Kind { kNothing, kChoice, kPath, kOther } kind = kNothing;
  std::string choices;  ///< separated by spaces
};

Value value_of(const CLI::Option& option) {
  // A flag takes no value; asking a positional for its type name would add nothing.
  if (option.get_items_expected_max() == 0) return {};
  std::string type = option.get_type_name();
  if (type.size() > 1 && type.front() == '{' && type.back() == '}') {
    type = type.substr(1, type.size() - 2);
    for (char& c : type) {
      if (c == ',') c = ' ';
    }
    return {Value::kChoice, type};
  }
  if (type == "PATH" || option.get_positional()) return {Value::kPath, {}};
  return {Value::kOther, {}};
}

/// "-h", "--help": every spelling, short ones first.
std::vector<std::string> spellings(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) names.push_back("--" + name);
  return names;
}

std::string join(const std::vector<std::string>& parts, const std::string& separator) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : separator) + part;
  return text;
}

std::vector<const CLI::Option*> named_options(const CLI::App& app) {
  return app.get_options([](const CLI::Option* option) { return !option->get_positional(); });
}

std::string all_flags(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : named_options(app)) {
    for (std::string& name : spellings(*option)) names.push_back(std::move(name));
  }
  return join(names, " ");
}

/// What the verb's positionals are; nothing when it has none.
Value positional_value(const CLI::App& verb) {
  for (const CLI::Option* option : verb.get_options()) {
    if (option->get_positional()) return value_of(*option);
  }
  return {};
}

std::vector<const CLI::App*> verbs_of(const CLI::App& root) {
  return root.get_subcommands([](const CLI::App*) { return true; });
}

std::string verb_names(const CLI::App& root) {
  std::vector<std::string> names;
  for (const CLI::App* verb : verbs_of(root)) names.push_back(verb->get_name());
  return join(names, " ");
}

/// `text` with a backslash before each of `special`.
std::string escaped(const std::string& text, std::string_view special) {
  std::string out;
  for (const char c : text) {
    if (special.find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

/// `text` inside single quotes, as bash and zsh read them.
std::string single_quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

}  // namespace

std::string bash_completion(const CLI::App& root) {
  std::string values, flags, positionals;
  for (const CLI::App* verb : verbs_of(root)) {
    const std::string& name = verb->get_name();
    for (const CLI::Option* option : named_options(*verb)) {
      const Value value = value_of(*option);
      if (value.kind == Value::kNothing) continue;
      std::vector<std::string> patterns;
      for (const std::string& flag : spellings(*option)) {
        patterns.push_back("'" + name + " " + flag + "'");
      }
      values += "    " + join(patterns, " | ") + ")";
      if (value.kind == Value::kChoice) {
        values += " COMPREPLY=($(compgen -W '" + value.choices + "' -- \"$cur\"));";
      } else if (value.kind == Value::kOther) {
        values += " compopt +o default;";
      }
      values += " return ;;\n";
    }
    flags +=
        "      " + name + ") COMPREPLY=($(compgen -W '" + all_flags(*verb) + "' -- \"$cur\")) ;;\n";
    const Value value = positional_value(*verb);
    if (value.kind == Value::kChoice) {
      positionals +=
          "    " + name + ") COMPREPLY=($(compgen -W '" + value.choices + "' -- \"$cur\")) ;;\n";
    }
  }
  return R"(# llmctl completion for bash. Load it with:  source <(llmctl completion bash)
_llmctl() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb= i
  # bash splits --flag=value into three words.
  if [[ $cur == '=' ]]; then cur=; elif [[ $prev == '=' ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi
  for ((i = 1; i < COMP_CWORD; i++)); do
    if [[ ${COMP_WORDS[i]} != -* ]]; then verb=${COMP_WORDS[i]}; break; fi
  done
  COMPREPLY=()
  case "$verb $prev" in
)" + values +
         R"(  esac
  if [[ $cur == -* ]]; then
    case $verb in
      '') COMPREPLY=($(compgen -W ')" +
         all_flags(root) + R"(' -- "$cur")) ;;
)" + flags +
         R"(    esac
    return
  fi
  # With no reply of ours, 'complete -o default' offers file names.
  case $verb in
    '') COMPREPLY=($(compgen -W ')" +
         verb_names(root) + R"(' -- "$cur")); compopt +o default ;;
)" + positionals +
         R"(  esac
}
complete -o default -F _llmctl llmctl
)";
}

std::string zsh_completion(const CLI::App& root) {
  // In an _arguments spec, [ ] and : separate the parts.
  const auto specs = [](const CLI::App& app, const std::string& indent) {
    std::string text;
    for (const CLI::Option* option : named_options(app)) {
      const std::vector<std::string> names = spellings(*option);
      const Value value = value_of(*option);
      std::string rest = "[" + escaped(option->get_description(), "[]:\\") + "]";
      if (value.kind == Value::kChoice) rest += ":value:(" + value.choices + ")";
      if (value.kind == Value::kPath) rest += ":path:_files";
      if (value.kind == Value::kOther) rest += ":" + option->get_type_name() + ":";
      for (const std::string& name : names) {
        const bool takes_value = value.kind != Value::kNothing;
        const std::string exclusive = names.size() > 1 ? "(" + join(names, " ") + ")" : "";
        // "--flag=" lets zsh complete both "--flag value" and "--flag=value".
        const std::string spelled = name + (takes_value && name[1] == '-' ? "=" : "");
        text += " \\\n" + indent + single_quoted(exclusive + spelled + rest);
      }
    }
    return text;
  };
  std::string verbs, cases;
  for (const CLI::App* verb : verbs_of(root)) {
    verbs += "        " +
             single_quoted(verb->get_name() + ":" + escaped(verb->get_description(), ":\\")) + "\n";
    cases +=
        "        " + verb->get_name() + ")\n          _arguments" + specs(*verb, "            ");
    const Value value = positional_value(*verb);
    if (value.kind == Value::kChoice) cases += " \\\n            '1:value:(" + value.choices + ")'";
    if (value.kind == Value::kPath) cases += " \\\n            '*:path:_files'";
    cases += "\n          ;;\n";
  }
  return R"(#compdef llmctl
# llmctl completion for zsh. Save it as _llmctl in a directory of $fpath, or load it with:
#   source <(llmctl completion zsh)
_llmctl() {
  local context state state_descr line
  typeset -A opt_args
  _arguments -C)" +
         specs(root, "    ") + R"( \
    '1:command:->command' \
    '*::argument:->argument'
  case $state in
    command)
      local -a commands=(
)" + verbs +
         R"(      )
      _describe -t commands 'llmctl command' commands
      ;;
    argument)
      case $words[1] in
)" + cases +
         R"(      esac
      ;;
  esac
}
if [[ ${funcstack[1]} == _llmctl ]]; then _llmctl "$@"; else compdef _llmctl llmctl; fi
)";
}

std::string fish_completion(const CLI::App& root) {
  const auto quoted = [](const std::string& text) { return "'" + escaped(text, "'\\") + "'"; };
  const auto lines = [&](const CLI::App& app, const std::string& condition) {
    std::string text;
    for (const CLI::Option* option : named_options(app)) {
      text += "complete -c llmctl -n " + quoted(condition);
      for (const std::string& name : option->get_snames()) text += " -s " + name;
      for (const std::string& name : option->get_lnames()) text += " -l " + name;
      const Value value = value_of(*option);
      if (value.kind == Value::kChoice) text += " -x -a " + quoted(value.choices);
      if (value.kind == Value::kPath) text += " -r -F";
      if (value.kind == Value::kOther) text += " -x";
      text += " -d " + quoted(option->get_description()) + "\n";
    }
    return text;
  };
  std::string text =
      "# llmctl completion for fish. Load it with:  llmctl completion fish | source\n"
      "complete -c llmctl -n __fish_use_subcommand -f\n" +
      lines(root, "__fish_use_subcommand");
  for (const CLI::App* verb : verbs_of(root)) {
    const std::string condition = "__fish_seen_subcommand_from " + verb->get_name();
    text += "complete -c llmctl -n __fish_use_subcommand -f -a " + verb->get_name() + " -d " +
            quoted(verb->get_description()) + "\n" + lines(*verb, condition);
    const Value value = positional_value(*verb);
    if (value.kind == Value::kChoice) {
      text +=
          "complete -c llmctl -n " + quoted(condition) + " -f -a " + quoted(value.choices) + "\n";
    }
  }
  return text;
}

Run add_completion(CLI::App& verb) {
  struct Options {
    std::string shell;
  };
  const auto options = std::make_shared<Options>();
  static constexpr std::array<std::string_view, 3> kShells = {"bash", "zsh", "fish"};
  add_choice(verb, "SHELL", options->shell, kShells, "The shell to write for")->required();
  static constexpr std::array<std::string_view, 3> kExamples = {
      "completion bash > ~/.local/share/bash-completion/completions/llmctl",
      "completion zsh > ~/.zfunc/_llmctl",
      "completion fish > ~/.config/fish/completions/llmctl.fish"};
  set_examples(verb, kExamples);
  return [options, &verb] {
    const CLI::App& root = *verb.get_parent();
    write_stdout(options->shell == "bash"  ? bash_completion(root)
                 : options->shell == "zsh" ? zsh_completion(root)
                                           : fish_completion(root));
    return ExitCode::kDone;
  };
}

}  // namespace llmctl::cli
