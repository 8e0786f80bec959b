// A line on the terminal that says how far a long copy is, how fast it goes and when it ends.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace llmctl::cli {

enum class ProgressStyle {
  kTerminal,  ///< a line that is redrawn, when stderr is a terminal; nothing elsewhere
  kJson,      ///< one JSON object a line (progress_json), whatever stderr is
  kNone,
};

/// Talks on stderr. `update` may be called from any thread, as often as convenient.
class Progress {
 public:
  /// `label` starts the line ("converting").
  explicit Progress(std::string label, ProgressStyle style = ProgressStyle::kTerminal);
  /// Erases the line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done_bytes` of `total_bytes` are finished; redraws at most ten times a second. JSON lines
  /// come at most twice a second, and one when all is done.
  void update(uint64_t done_bytes, uint64_t total_bytes);

 private:
  using Clock = std::chrono::steady_clock;

  void print_json_line(uint64_t done_bytes, uint64_t total_bytes, Clock::time_point now);

  std::string label_;
  ProgressStyle style_;
  std::mutex mutex_;  ///< guards what follows
  Clock::time_point start_, last_draw_;
  bool drawn_ = false, done_ = false;
};

/// The text of the line: "converting  42%  1.30 GB of 3.10 GB  820 MB/s  0:02 left". Speed and
/// remaining time are left out before the first half second has passed.
std::string progress_line(const std::string& label, uint64_t done_bytes, uint64_t total_bytes,
                          double seconds);

/// {"progress":"converting","bytes_done":1,"bytes_total":2,"bytes_per_second":1,"eta_seconds":1.0}:
/// the last is null as long as no byte is done.
std::string progress_json(const std::string& label, uint64_t done_bytes, uint64_t total_bytes,
                          double seconds);

}  // namespace llmctl::cli
