// Ends a text at the first of some strings, in a stream that never shows half of one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace llmctl::runtime {

/// Text goes in piece by piece, and comes out as soon as no stop string can begin in it. What comes
/// out does not depend on how the text is cut: the stop string that ends first counts, and of those
/// that end at the same place the longest. Neither it nor anything after it comes out. Not
/// thread-safe.
class StopStrings {
 public:
  /// Requires: no empty string. None at all is allowed, then everything passes.
  explicit StopStrings(std::vector<std::string> stops = {});

  /// Appends to `text` what is certain. Once stopped, nothing.
  void push(std::string_view piece, std::string& text);
  /// Appends what was held back; call it once, last.
  void finish(std::string& text);
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;  // the longest end of the text that may become a stop string
  bool stopped_ = false;
};

}  // namespace llmctl::runtime
