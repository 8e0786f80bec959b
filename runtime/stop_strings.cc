#include "runtime/stop_strings.h"

#include <algorithm>

namespace llmctl::runtime {

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {}

void StopStrings::push(std::string_view piece, std::string& text) {
  if (stopped_) return;
  for (const char c : piece) {
    held_ += c;
    const std::string* found = nullptr;
    size_t keep = 0;
    for (const std::string& stop : stops_) {
      if (held_.ends_with(stop) && (found == nullptr || stop.size() > found->size())) found = &stop;
      for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n) {
        if (held_.ends_with(std::string_view(stop).substr(0, n))) keep = n;
      }
    }
    if (found != nullptr) {
      text.append(held_, 0, held_.size() - found->size());
      held_.clear();
      stopped_ = true;
      return;
    }
    text.append(held_, 0, held_.size() - keep);
    held_.erase(0, held_.size() - keep);
  }
}

void StopStrings::finish(std::string& text) {
  text += held_;
  held_.clear();
}

}  // namespace llmctl::runtime
