#include "cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "cli/json.h"
#include "cli/output.h"
#include "cli/size.h"

namespace llmctl::cli {

std::string progress_line(const std::string& label, uint64_t done_bytes, uint64_t total_bytes,
                          double seconds) {
  done_bytes = std::min(done_bytes, total_bytes);
  const double fraction =
      total_bytes == 0 ? 1.0 : static_cast<double>(done_bytes) / static_cast<double>(total_bytes);
  std::string percent = std::to_string(static_cast<int>(fraction * 100)) + "%";
  percent.insert(0, 4 - std::min<size_t>(4, percent.size()), ' ');
  std::string line =
      label + " " + percent + "  " + format_size(done_bytes) + " of " + format_size(total_bytes);
  if (seconds >= 0.5 && done_bytes > 0) {
    const double rate = static_cast<double>(done_bytes) / seconds;
    const double left = static_cast<double>(total_bytes - done_bytes) / rate;
    line +=
        "  " + format_size(static_cast<uint64_t>(rate)) + "/s  " + format_duration(left) + " left";
  }
  return line;
}

std::string progress_json(const std::string& label, uint64_t done_bytes, uint64_t total_bytes,
                          double seconds) {
  done_bytes = std::min(done_bytes, total_bytes);
  const double rate = static_cast<double>(done_bytes) / std::max(seconds, 1e-6);
  Json json = {{"progress", label},
               {"bytes_done", done_bytes},
               {"bytes_total", total_bytes},
               {"bytes_per_second", static_cast<uint64_t>(rate)},
               {"eta_seconds", nullptr}};
  if (done_bytes > 0) {
    const double left = static_cast<double>(total_bytes - done_bytes) / rate;
    json["eta_seconds"] = std::round(left * 10) / 10;
  }
  return json.dump();
}

Progress::Progress(std::string label, ProgressStyle style)
    : label_(std::move(label)), style_(style), start_(Clock::now()), last_draw_(start_) {
  if (style_ == ProgressStyle::kTerminal && !is_terminal(STDERR_FILENO)) {
    style_ = ProgressStyle::kNone;
  }
}

Progress::~Progress() {
  if (drawn_) write_stderr("\r\033[K");
}

void Progress::update(uint64_t done_bytes, uint64_t total_bytes) {
  if (style_ == ProgressStyle::kNone) return;
  const bool json = style_ == ProgressStyle::kJson;
  if (json && done_bytes >= total_bytes) {
    const std::lock_guard lock(mutex_);
    if (!done_) print_json_line(done_bytes, total_bytes, Clock::now());
    done_ = true;
    return;
  }
  // Whoever holds the lock is drawing; there is nothing to add.
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || done_) return;
  const Clock::time_point now = Clock::now();
  if (now - last_draw_ < std::chrono::milliseconds(json ? 500 : 100)) return;
  last_draw_ = now;
  if (json) return print_json_line(done_bytes, total_bytes, now);
  drawn_ = true;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  write_stderr("\r" + progress_line(label_, done_bytes, total_bytes, seconds) + "\033[K");
}

void Progress::print_json_line(uint64_t done_bytes, uint64_t total_bytes, Clock::time_point now) {
  const double seconds = std::chrono::duration<double>(now - start_).count();
  write_stderr(progress_json(label_, done_bytes, total_bytes, seconds) + "\n");
}

}  // namespace llmctl::cli
