#include "reshard/journal.h"

#include <xxhash.h>

#include <charconv>
#include <span>
#include <utility>

#include "formats/core/atomic_directory.h"
#include "formats/core/error.h"
#include "formats/json.h"

namespace llmctl::reshard {

namespace fs = std::filesystem;

namespace {

/// A unit of 4 MiB takes some hundred bytes; this is room for a petabyte.
constexpr uint64_t kMaxJournalBytes = uint64_t{64} << 30;
constexpr size_t kChecksumDigits = 16;

std::string hex(uint64_t value) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (int shift = 60; shift >= 0; shift -= 4) text += kDigits[value >> shift & 15];
  return text;
}

/// "CHECKSUM content\n".
std::string line_of(const std::string& content) {
  return hex(XXH3_64bits(content.data(), content.size())) + " " + content + "\n";
}

/// The content of the line at the front of `text`, which loses it; nothing when it is not whole.
std::optional<std::string_view> take_line(std::string_view& text) {
  const size_t end = text.find('\n');
  if (end == std::string_view::npos || end <= kChecksumDigits) return std::nullopt;
  const std::string_view content = text.substr(kChecksumDigits + 1, end - kChecksumDigits - 1);
  if (text[kChecksumDigits] != ' ' ||
      text.substr(0, kChecksumDigits) != hex(XXH3_64bits(content.data(), content.size()))) {
    return std::nullopt;
  }
  text.remove_prefix(end + 1);
  return content;
}

std::string text_of(const JournalUnit& unit) {
  std::string text = "unit " + std::to_string(unit.unit);
  for (const JournalUnit::Written& w : unit.written) {
    text += " w " + std::to_string(w.tensor) + " " + std::to_string(w.offset) + " " +
            std::to_string(w.size) + " " + std::to_string(w.hash);
  }
  for (const JournalUnit::Read& r : unit.read) {
    text += " r " + std::to_string(r.source) + " " + std::to_string(r.begin) + " " +
            std::to_string(r.end);
  }
  for (const auto& [tensor, sum] : unit.sums) {
    text += " s " + std::to_string(tensor) + " " + std::to_string(sum);
  }
  return text;
}

class Words {
 public:
  explicit Words(std::string_view text) : text_(text) {}
  std::string_view next() {
    const size_t end = std::min(text_.find(' '), text_.size());
    const std::string_view word = text_.substr(0, end);
    text_.remove_prefix(std::min(end + 1, text_.size()));
    return word;
  }
  /// False when the next word is no number.
  bool number(uint64_t& value) {
    const std::string_view word = next();
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    return error == std::errc() && end == word.data() + word.size() && !word.empty();
  }

 private:
  std::string_view text_;
};

std::optional<JournalUnit> parse_unit(std::string_view text) {
  Words words(text);
  JournalUnit unit;
  if (words.next() != "unit" || !words.number(unit.unit)) return std::nullopt;
  for (;;) {
    const std::string_view kind = words.next();
    bool good = true;
    if (kind.empty()) return unit;
    if (kind == "w") {
      JournalUnit::Written& w = unit.written.emplace_back();
      good = words.number(w.tensor) && words.number(w.offset) && words.number(w.size) &&
             words.number(w.hash);
    } else if (kind == "r") {
      JournalUnit::Read& r = unit.read.emplace_back();
      good = words.number(r.source) && words.number(r.begin) && words.number(r.end);
    } else if (kind == "s") {
      auto& [tensor, sum] = unit.sums.emplace_back();
      good = words.number(tensor) && words.number(sum);
    } else {
      good = false;
    }
    if (!good) return std::nullopt;
  }
}

}  // namespace

std::string journal_name(int rank) {
  return std::string(kJournalName) + (rank == 0 ? "" : "." + std::to_string(rank));
}

std::vector<std::string> list_journals(const fs::path& directory) {
  std::vector<std::string> names;
  for (const std::string& name : list_files_below(directory)) {
    if (name == kJournalName || name.starts_with(std::string(kJournalName) + ".")) {
      names.push_back(name);
    }
  }
  return names;
}

uint64_t JournalUnit::num_bytes() const {
  uint64_t bytes = 0;
  for (const Written& w : written) bytes += w.size;
  return bytes;
}

void Journal::write_text(const std::string& text) {
  file_.write_at(std::as_bytes(std::span(text)), end_);
  file_.sync();
  end_ += text.size();
}

Journal Journal::create(const fs::path& path, const JournalHeader& header) {
  Journal journal(File::create(path));
  journal.header_ = header;
  journal.write_text(line_of(nlohmann::ordered_json(header).dump(
      -1, ' ', true, nlohmann::ordered_json::error_handler_t::replace)));
  return journal;
}

std::optional<Journal> Journal::open(const fs::path& path) {
  std::error_code ec;
  if (!fs::is_regular_file(fs::symlink_status(path, ec))) return std::nullopt;
  const std::string all = read_text_file(path, kMaxJournalBytes);
  std::string_view text = all;
  const auto first = take_line(text);
  if (!first) return std::nullopt;
  Journal journal(File::open_write(path));
  const auto json = formats::parse_json(*first, path.string());
  if (!json.is_object()) return std::nullopt;
  for (const auto& [name, value] : json.items()) {
    if (!value.is_string()) return std::nullopt;
    journal.header_[name] = value.get<std::string>();
  }
  for (;;) {
    std::string_view rest = text;
    const auto line = take_line(rest);
    auto unit = line ? parse_unit(*line) : std::nullopt;
    if (!unit) break;
    journal.units_.push_back(std::move(*unit));
    text = rest;
  }
  // Lines that come next take the place of what a kill has cut, whose rest is no whole line.
  journal.end_ = all.size() - text.size();
  return journal;
}

void Journal::append(const std::vector<JournalUnit>& units) {
  std::string text;
  for (const JournalUnit& unit : units) text += line_of(text_of(unit));
  if (!text.empty()) write_text(text);
}

}  // namespace llmctl::reshard
