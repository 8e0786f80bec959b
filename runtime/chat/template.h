// A chat template: Jinja text that turns a conversation into a prompt.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "runtime/chat/value.h"

namespace llmctl::runtime::chat {

struct ParsedTemplate;

/// Jinja as transformers sets it up: trim_blocks, lstrip_blocks, no autoescape, immutable values,
/// loop controls, and `raise_exception`, `strftime_now`, `tojson` of its own. What is not supported
/// is refused by name and line, at the latest where it would matter (docs/tokenizers.md).
/// Immutable; safe to share between threads.
class Template {
 public:
  /// Throws kInvalidInput, naming `where` and the line.
  Template(std::string_view source, std::string where);
  ~Template();
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;

  /// The text that the template makes of `variables`. Throws kInvalidInput, naming the template and
  /// the line, where jinja2 would raise, where the template itself raises, and where it does more
  /// than any conversation needs: steps, text and nesting are bounded.
  std::string render(const Dict& variables) const;

 private:
  std::unique_ptr<const ParsedTemplate> parsed_;
};

}  // namespace llmctl::runtime::chat
