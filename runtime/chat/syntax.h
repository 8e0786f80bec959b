// A parsed chat template: the part of Jinja that templates of conversations are written in.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/chat/value.h"

namespace llmctl::runtime::chat {

struct Expr {
  enum class Kind {
    kConst,      ///< value
    kName,       ///< name
    kList,       ///< children
    kTuple,      ///< children
    kDict,       ///< children: key, value, key, value, ...
    kAttribute,  ///< children[0] . name
    kItem,       ///< children[0] [ children[1] ]
    kSlice,      ///< children[0] [ children[1] : children[2] : children[3] ], absent ones null
    kCall,       ///< children[0] ( children[1...], keywords )
    kFilter,     ///< children[0] | name ( children[1...], keywords ); a null first one: set block
    kTest,       ///< children[0] is name ( children[1...] )
    kNot,
    kNegative,
    kPositive,
    kAnd,
    kOr,
    kConditional,  ///< children[0] if children[1] else children[2], which may be null
    kCompare,      ///< children[0] operators[0] children[1] operators[1] children[2] ...
    kArithmetic,   ///< children[0] name children[1]: + - * / // % **
    kConcat,       ///< children joined by ~
  };
  Kind kind;
  int line;
  std::string name;
  Value value;
  std::vector<std::unique_ptr<Expr>> children;
  std::vector<std::pair<std::string, std::unique_ptr<Expr>>> keywords;
  std::vector<std::string> operators;
};

/// What a for loop or a set assigns to.
struct Target {
  std::vector<std::string> names;
  bool is_tuple = false;
  std::string attribute;  ///< set names[0].attribute; empty for a plain name
};

struct Stmt;
using Block = std::vector<std::unique_ptr<Stmt>>;

struct Stmt {
  enum class Kind {
    kText,         ///< text
    kPrint,        ///< expr
    kIf,           ///< branches in order; a null condition is else
    kFor,          ///< target in expr if test: body, else other
    kSet,          ///< target = expr
    kSetBlock,     ///< target = body, through the filters in expr (may be null)
    kMacro,        ///< text(parameters): body
    kFilterBlock,  ///< body through the filters in expr
    kScope,        ///< body, whose names stay inside (generation)
    kBreak,
    kContinue,
  };
  Kind kind;
  int line;
  std::string text;
  Target target;
  std::unique_ptr<Expr> expr, test;
  std::vector<std::pair<std::unique_ptr<Expr>, Block>> branches;
  std::vector<std::pair<std::string, std::unique_ptr<Expr>>> parameters;  ///< name, default or null
  Block body, other;
};

/// Parses `source`. Throws kInvalidInput, naming `where` and the line, for what is no Jinja and for
/// every tag, filter, test or construct that is not supported.
Block parse_template(std::string_view source, const std::string& where);

}  // namespace llmctl::runtime::chat
