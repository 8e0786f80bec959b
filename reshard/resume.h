// Continuing a run that was killed: what is recorded while it works, and how the next run takes it
// over.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "reshard/executor.h"
#include "reshard/file_sink.h"
#include "reshard/journal.h"
#include "reshard/panel_sink.h"
#include "reshard/transfer_check.h"

namespace llmctl::reshard {

/// XXH3-128 of all that decides what a plan writes and where: target tensors, copies, files.
std::string plan_fingerprint(const Plan& plan, const std::vector<formats::FilePlan>& files);
/// XXH3-128 of sizes and times of change of a checkpoint's files.
std::string file_stamps(const formats::Checkpoint& checkpoint);

/// Records finished units in a journal and passes over those that an earlier run has finished, once
/// their bytes have been read back and found to be those that were written. Passes everything on
/// to the check. Thread-safe.
class ResumableTransfer : public TransferObserver {
 public:
  struct Setup {
    const Plan* plan = nullptr;
    const std::vector<formats::FilePlan>* files = nullptr;
    std::filesystem::path folder;
    FileSink* sink = nullptr;
    PanelSink* panels = nullptr;     ///< in front of `sink`, or null
    TransferCheck* check = nullptr;  ///< may be null
    Journal* journal = nullptr;
    std::vector<const Journal*> others;            ///< of other processes of earlier runs
    std::function<void(uint64_t bytes)> progress;  ///< of what is passed over; may be empty
    /// Bytes and time after which what is done goes to the disk and the journal.
    uint64_t interval_bytes = uint64_t{1} << 30;
    std::chrono::milliseconds interval{5000};
  };
  /// Requires: all that `setup` points to outlives this.
  explicit ResumableTransfer(Setup setup);

  void on_read(int source, int64_t lo, std::span<const std::byte> bytes) override;
  void on_write(size_t tensor, int64_t lo, std::span<const std::byte> bytes) override;
  bool skip_unit(size_t unit) override;
  void end_unit(size_t unit) override;

  /// Brings what is done to the disk and the journal. Called by itself at intervals.
  void flush();
  /// Bytes of target tensors that the journal knows, those taken over included.
  uint64_t recorded_bytes() const { return recorded_bytes_.load(); }
  uint64_t resumed_bytes() const { return resumed_bytes_.load(); }

 private:
  struct Ledger;
  static Ledger& ledger();
  /// Calls body(offset in the range, bytes) for steps of a written range.
  void read_steps(const JournalUnit::Written& range,
                  const std::function<void(uint64_t, std::span<const std::byte>)>& body) const;
  bool is_on_disk(const JournalUnit& unit);
  void take_over(const JournalUnit& unit);

  Setup setup_;
  struct Place {
    size_t file = 0;
    uint64_t offset_bytes = 0;
  };
  std::vector<Place> places_;                    // of target tensors
  std::map<uint64_t, const JournalUnit*> done_;  // by earlier runs
  std::atomic<uint64_t> recorded_bytes_{0}, resumed_bytes_{0};

  std::mutex mutex_;  // guards the three below
  std::vector<JournalUnit> pending_;
  uint64_t pending_bytes_ = 0;
  std::chrono::steady_clock::time_point last_flush_;
  std::mutex flush_mutex_;  // held by the one that flushes
};

}  // namespace llmctl::reshard
