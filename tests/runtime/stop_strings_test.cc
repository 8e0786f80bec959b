#include "runtime/stop_strings.h"

#include <doctest/doctest.h>

using llmctl::runtime::StopStrings;

namespace {

std::string run(const std::vector<std::string>& stops, const std::string& text, size_t piece,
                bool* stopped = nullptr) {
  StopStrings matcher(stops);
  std::string out;
  for (size_t i = 0; i < text.size(); i += piece) matcher.push(text.substr(i, piece), out);
  matcher.finish(out);
  if (stopped != nullptr) *stopped = matcher.stopped();
  return out;
}

}  // namespace

TEST_CASE("stop_strings: text ends before the stop string that ends first however it is cut") {
  struct Case {
    std::vector<std::string> stops;
    std::string text, want;
    bool stopped;
  };
  const Case cases[] = {
      {{}, "any text", "any text", false},
      {{"END"}, "abcENDdef", "abc", true},
      {{"END"}, "abcENENDx", "abcEN", true},
      {{"END"}, "abcEN", "abcEN", false},
      {{"aab"}, "aaaab", "aa", true},
      {{"bc", "abc"}, "xabcd", "x", true},         // both end at the c: the longer one
      {{"cd", "abcdef"}, "xabcdef", "xab", true},  // cd ends first
      {{"\n\n", "User:"}, "one\ntwo\n\nthree", "one\ntwo", true},
      {{"END"}, "ENDabc", "", true},
  };
  for (const Case& c : cases) {
    CAPTURE(c.text);
    for (size_t piece = 1; piece <= c.text.size(); ++piece) {
      CAPTURE(piece);
      bool stopped = false;
      CHECK(run(c.stops, c.text, piece, &stopped) == c.want);
      CHECK(stopped == c.stopped);
    }
  }
}

TEST_CASE("stop_strings: nothing comes out that may become a stop string") {
  StopStrings matcher({"<end>", "\nQ:"});
  std::string out;
  matcher.push("a<en", out);
  CHECK(out == "a");
  matcher.push("x\n", out);
  CHECK(out == "a<enx");
  matcher.push("Q", out);
  CHECK(out == "a<enx");
  matcher.push(".", out);
  CHECK(out == "a<enx\nQ.");
  matcher.push("<end", out);
  matcher.push(">more", out);
  CHECK(out == "a<enx\nQ.");
  CHECK(matcher.stopped());
  matcher.push("more", out);
  matcher.finish(out);
  CHECK(out == "a<enx\nQ.");
}
