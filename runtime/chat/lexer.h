// Cuts a Jinja template into tokens, with white space handled as transformers sets it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llmctl::runtime::chat {

struct Token {
  enum class Kind {
    kData,      ///< text outside of tags
    kPrint,     ///< {{
    kPrintEnd,  ///< }}
    kBlock,     ///< {%
    kBlockEnd,  ///< %}
    kName,
    kString,  ///< `text` is unescaped
    kInteger,
    kFloat,
    kOperator,  ///< `text` is one of + - / // * % ** ~ [ ] ( ) { } == != > >= < <= = . : | , ;
    kEnd,
  };
  Kind kind;
  std::string text;
  int line;
};

/// The tokens of `source`, kEnd last, as jinja2's lexer makes them with trim_blocks and
/// lstrip_blocks on (what transformers sets) and the marks "-" and "+" at tags. Throws
/// kInvalidInput, naming `where` and the line, for what is no Jinja.
std::vector<Token> tokenize_template(std::string_view source, const std::string& where);

/// Throws kInvalidInput: "WHERE, line LINE: WHAT".
[[noreturn]] void throw_template_error(const std::string& where, int line, const std::string& what,
                                       const std::string& hint = {});

}  // namespace llmctl::runtime::chat
