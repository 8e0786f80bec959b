// A session on a terminal: what is typed and what is answered, on and on.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/engine.h"
#include "runtime/tokenizer/tokenizer.h"

namespace llmctl::cli {

/// How what was typed becomes a prompt.
struct SessionPrompts {
  /// The ids to compute for `text`, all that went before included: `context` are the ids of the
  /// session so far, empty at its start.
  std::function<std::vector<int32_t>(const std::vector<int32_t>& context, const std::string& text)>
      encode;
};

/// The text goes on from the ids that there are, as it is.
SessionPrompts plain_prompts(const runtime::Tokenizer& tokenizer);

/// Reads lines from stdin until it ends (Ctrl-D) or /exit; a line that ends with a backslash goes
/// on in the next. Answers are written to stdout as they come; Ctrl-C ends one. `request` says how
/// tokens are chosen; with `choose_max_new_tokens` an answer gets as many as the flags' default.
/// What a line is refused for is printed, and the session goes on without it.
void run_interactive(runtime::Engine& engine, const runtime::Tokenizer& tokenizer,
                     const runtime::GenerateRequest& request, bool choose_max_new_tokens,
                     const SessionPrompts& prompts);

}  // namespace llmctl::cli
