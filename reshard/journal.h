// What a run has done so far, on disk beside it, so that a killed one can be continued.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/core/file.h"

namespace llmctl::reshard {

inline constexpr std::string_view kJournalName = ".llmctl-journal";
/// Of processes that share a job each keeps its own: rank 0's has the name, the others' a number
/// behind it.
std::string journal_name(int rank);
/// The names of all that are in a directory, rank 0's first.
std::vector<std::string> list_journals(const std::filesystem::path& directory);

/// What makes two runs the same work: name to value, in a fixed order of names.
using JournalHeader = std::map<std::string, std::string>;

/// A finished unit of work.
struct JournalUnit {
  uint64_t unit = 0;
  /// Ranges of target tensors, from byte `offset` of the tensor, and XXH3-64 of what was written.
  struct Written {
    uint64_t tensor = 0, offset = 0, size = 0, hash = 0;
  };
  std::vector<Written> written;
  /// Elements of stored tensors that count as read with this unit.
  struct Read {
    uint64_t source = 0, begin = 0, end = 0;
  };
  std::vector<Read> read;
  /// What they add to the digests of the canonical tensors, by index.
  std::vector<std::pair<uint64_t, uint64_t>> sums;

  uint64_t num_bytes() const;
};

/// An append-only file of lines, each with its checksum; the first is the header. A line that a
/// kill has cut ends the journal. Not thread-safe.
class Journal {
 public:
  /// A new one; kEnvironment when it exists.
  static Journal create(const std::filesystem::path& path, const JournalHeader& header);
  /// The header and units of an existing one, up to the first line that is not whole; later units
  /// come behind it. Nothing when there is none or its header is not whole.
  static std::optional<Journal> open(const std::filesystem::path& path);

  const JournalHeader& header() const { return header_; }
  /// Those that were there when it was opened.
  const std::vector<JournalUnit>& units() const { return units_; }

  /// Appends and flushes to the disk. Requires: what the units speak of is on the disk.
  void append(const std::vector<JournalUnit>& units);

 private:
  explicit Journal(File file) : file_(std::move(file)) {}
  void write_text(const std::string& text);

  File file_;
  uint64_t end_ = 0;  // where the next line goes
  JournalHeader header_;
  std::vector<JournalUnit> units_;
};

}  // namespace llmctl::reshard
