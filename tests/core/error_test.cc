#include "formats/core/error.h"

#include <doctest/doctest.h>

#include <cerrno>

namespace llmctl {
namespace {

TEST_CASE("error: the line is where then what then hint") {
  CHECK(std::string(Error(ErrorCode::kUsage, "what", "where", "hint").what()) ==
        "where: what; hint");
  CHECK(std::string(Error(ErrorCode::kUsage, "what").what()) == "what");
  Error error(ErrorCode::kInvalidInput, "what", "tensor 'a'");
  error.add_context("shard 3 of 8");
  CHECK(std::string(error.what()) == "shard 3 of 8: tensor 'a': what");
  Error bare(ErrorCode::kInvalidInput, "what");
  bare.add_context("outer");
  CHECK(std::string(bare.what()) == "outer: what");
}

TEST_CASE("error: the line stays one whatever the parts hold") {
  const Error error(ErrorCode::kUsage, "a\nb", "dir\r\x1b[2J/x", "\xC2\x9B\xFF");
  CHECK(std::string(error.what()) == "dir\\x0d\\x1b[2J/x: a\\x0ab; \\xc2\\x9b\\xff");
  CHECK(error.message() == "a\nb");
}

TEST_CASE("error: errno is the one on entry") {
  errno = ENOSPC;
  try {
    throw_errno("out", "cannot write");
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kEnvironment);
    CHECK(std::string(e.what()) == "out: cannot write: No space left on device");
  }
}

TEST_CASE("printable: keeps valid UTF-8 and escapes everything else") {
  CHECK(printable("größe.层.😀") == "größe.层.😀");
  CHECK(printable("a\tb\x7f") == "a\\x09b\\x7f");
  CHECK(printable(std::string("a\0b", 3)) == "a\\x00b");
  CHECK(printable("\xC0\x80") == "\\xc0\\x80");           // overlong zero
  CHECK(printable("\xE0\x80\x80") == "\\xe0\\x80\\x80");  // overlong
  CHECK(printable("\xED\xA0\x80") == "\\xed\\xa0\\x80");  // a surrogate
  CHECK(printable("\xF0\x80\x80\x80") == "\\xf0\\x80\\x80\\x80");
  CHECK(printable("\xF4\x90\x80\x80") == "\\xf4\\x90\\x80\\x80");  // past U+10FFFF
  CHECK(printable("\xC3") == "\\xc3");                             // cut
  CHECK(printable("\xF0\x9F\x98") == "\\xf0\\x9f\\x98");
  CHECK(printable("\xC2\x85") == "\\xc2\\x85");  // next line, a control character
  CHECK(printable("\xC2\xA0") == "\xC2\xA0");
}

TEST_CASE("printable: cuts between characters") {
  CHECK(printable("abcdef", 3) == "abc...");
  CHECK(printable("abc", 3) == "abc");
  CHECK(printable("ééé", 3) == "éé...");
  CHECK(printable("", 0) == "");
  CHECK(printable(std::string(100000, '\n')).size() < 300);
}

}  // namespace
}  // namespace llmctl
