// A line on the terminal that says how far a long copy is, how fast it goes and when it ends.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace llmctl::cli {

/// Draws on stderr, and only when that is a terminal; elsewhere every call does nothing.
/// `update` may be called from any thread, as often as convenient.
class Progress {
 public:
  /// `label` starts the line ("converting").
  explicit Progress(std::string label);
  /// Erases the line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done_bytes` of `total_bytes` are finished; redraws at most ten times a second.
  void update(uint64_t done_bytes, uint64_t total_bytes);

 private:
  using Clock = std::chrono::steady_clock;

  std::string label_;
  bool enabled_;
  std::mutex mutex_;  ///< guards what follows
  Clock::time_point start_, last_draw_;
  bool drawn_ = false;
};

/// The text of the line: "converting  42%  1.30 GB of 3.10 GB  820 MB/s  0:02 left". Speed and
/// remaining time are left out before the first half second has passed.
std::string progress_line(const std::string& label, uint64_t done_bytes, uint64_t total_bytes,
                          double seconds);

}  // namespace llmctl::cli
