#include "reshard/resume.h"

#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <memory>
#include <new>
#include <utility>

#include "formats/core/cancel.h"
#include "formats/core/error.h"

namespace llmctl::reshard {

namespace fs = std::filesystem;

namespace {

/// Collects values into one XXH3-128.
class Fingerprint {
 public:
  Fingerprint() : state_(XXH3_createState(), XXH3_freeState) {
    if (!state_) throw std::bad_alloc();
    XXH3_128bits_reset(state_.get());
  }
  void add(int64_t value) { XXH3_128bits_update(state_.get(), &value, sizeof value); }
  void add_size(uint64_t value) { add(static_cast<int64_t>(value)); }
  void add(const std::string& text) {
    add_size(text.size());
    XXH3_128bits_update(state_.get(), text.data(), text.size());
  }
  std::string hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
    return digest_hex(hash.high64) + digest_hex(hash.low64);
  }

 private:
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state_;
};

/// XXH3-64 of bytes that come in steps.
class Fingerprint64 {
 public:
  Fingerprint64() : state_(XXH3_createState(), XXH3_freeState) {
    if (!state_) throw std::bad_alloc();
    XXH3_64bits_reset(state_.get());
  }
  void add(std::span<const std::byte> bytes) {
    XXH3_64bits_update(state_.get(), bytes.data(), bytes.size());
  }
  uint64_t value() const { return XXH3_64bits_digest(state_.get()); }

 private:
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state_;
};

void add_ops(Fingerprint& print, const std::vector<CopyOp>& ops) {
  print.add_size(ops.size());
  for (const CopyOp& op : ops) {
    print.add(op.source);
    print.add(op.src_offset);
    print.add(op.dst_offset);
    for (int a = 0; a < op.box.num_axes; ++a) {
      print.add(op.box.extents[a]);
      print.add(op.box.src_strides[a]);
      print.add(op.box.dst_strides[a]);
    }
  }
}

uint64_t hash_of(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

}  // namespace

std::string plan_fingerprint(const Plan& plan, const std::vector<formats::FilePlan>& files) {
  Fingerprint print;
  for (const PlannedTensor& tensor : plan.tensors) {
    print.add(tensor.target.name);
    print.add(static_cast<int64_t>(tensor.target.dtype));
    print.add(tensor.target.tp_rank);
    print.add(tensor.target.pp_rank);
    for (const int64_t extent : tensor.target.shape) print.add(extent);
    add_ops(print, tensor.ops);
    add_ops(print, tensor.plus);
    print.add(std::to_string(tensor.multiply) + "/" + std::to_string(tensor.divide));
    print.add(tensor.has_padding ? 1 : 0);
  }
  for (const formats::FilePlan& file : files) {
    print.add(file.name);
    print.add_size(file.size_bytes);
    for (const auto& literal : file.literals) {
      print.add_size(literal.offset_bytes);
      print.add(literal.bytes);
    }
    for (const formats::Placement& placement : file.placements) {
      print.add(placement.tensor);
      print.add_size(placement.offset_bytes);
    }
  }
  return print.hex();
}

std::string file_stamps(const formats::Checkpoint& checkpoint) {
  Fingerprint print;
  for (const formats::CheckpointFile& file : checkpoint.files) {
    struct stat status {};
    if (::stat(file.path.c_str(), &status) != 0) throw_errno(file.path.string(), "cannot stat");
    print.add(status.st_size);
    print.add(status.st_mtim.tv_sec);
    print.add(status.st_mtim.tv_nsec);
  }
  return print.hex();
}

/// What the unit that a thread works on has done so far.
struct ResumableTransfer::Ledger {
  TransferCheck::ReadRecord read;
  std::vector<JournalUnit::Written> written;
};

ResumableTransfer::Ledger& ResumableTransfer::ledger() {
  static thread_local Ledger ledger;
  return ledger;
}

ResumableTransfer::ResumableTransfer(Setup setup)
    : setup_(std::move(setup)),
      places_(setup_.plan->tensors.size()),
      last_flush_(std::chrono::steady_clock::now()) {
  for (size_t i = 0; i < setup_.files->size(); ++i) {
    for (const formats::Placement& placement : (*setup_.files)[i].placements) {
      places_[static_cast<size_t>(placement.tensor)] = {i, placement.offset_bytes};
    }
  }
  std::vector<const Journal*> journals = setup_.others;
  journals.push_back(setup_.journal);
  for (const Journal* journal : journals) {
    for (const JournalUnit& unit : journal->units()) done_[unit.unit] = &unit;
  }
}

void ResumableTransfer::on_read(int source, int64_t lo, std::span<const std::byte> bytes) {
  if (setup_.check != nullptr) setup_.check->on_read(source, lo, bytes, ledger().read);
}

void ResumableTransfer::on_write(size_t tensor, int64_t lo, std::span<const std::byte> bytes) {
  if (setup_.check != nullptr) setup_.check->on_write(tensor, lo, bytes);
  const size_t width = dtype_bytes(setup_.plan->tensors[tensor].target.dtype);
  ledger().written.push_back(
      {tensor, static_cast<uint64_t>(lo) * width, bytes.size(), hash_of(bytes)});
}

bool ResumableTransfer::skip_unit(size_t unit) {
  ledger() = {};
  const auto it = done_.find(unit);
  if (it == done_.end() || !is_on_disk(*it->second)) return false;
  take_over(*it->second);
  return true;
}

void ResumableTransfer::read_steps(
    const JournalUnit::Written& range,
    const std::function<void(uint64_t, std::span<const std::byte>)>& body) const {
  constexpr uint64_t kStepBytes = uint64_t{1} << 20;
  const Place& place = places_[range.tensor];
  const File file = File::open_read(setup_.folder / (*setup_.files)[place.file].name);
  static thread_local std::vector<std::byte> buffer;
  buffer.resize(kStepBytes);
  for (uint64_t at = 0; at < range.size; at += kStepBytes) {
    throw_if_cancelled();
    const auto bytes =
        std::span(buffer).first(static_cast<size_t>(std::min(kStepBytes, range.size - at)));
    if (setup_.panels != nullptr) {
      setup_.panels->read_back(file, place.offset_bytes, range.tensor, range.offset + at, bytes);
    } else {
      file.read_at(bytes, place.offset_bytes + range.offset + at);
    }
    body(at, bytes);
  }
}

/// Whether every range of the unit is there as it was written. The journal comes after the data,
/// but a page that two units share may have waited in memory for the second.
bool ResumableTransfer::is_on_disk(const JournalUnit& unit) {
  for (const JournalUnit::Written& range : unit.written) {
    if (range.tensor >= places_.size()) return false;
    const PlannedTensor& tensor = setup_.plan->tensors[range.tensor];
    if (!is_inside(range.offset, range.size, tensor.num_bytes())) return false;
    Fingerprint64 found;
    read_steps(range, [&](uint64_t, std::span<const std::byte> bytes) { found.add(bytes); });
    if (found.value() != range.hash) return false;
  }
  return true;
}

void ResumableTransfer::take_over(const JournalUnit& unit) {
  for (const JournalUnit::Written& range : unit.written) {
    const size_t width = dtype_bytes(setup_.plan->tensors[range.tensor].target.dtype);
    Fingerprint64 again;
    read_steps(range, [&](uint64_t at, std::span<const std::byte> bytes) {
      again.add(bytes);
      if (setup_.check != nullptr) {
        setup_.check->on_write(range.tensor, static_cast<int64_t>((range.offset + at) / width),
                               bytes);
      }
      if (setup_.panels != nullptr) {
        setup_.panels->adopt(range.tensor, range.offset + at, bytes);
      } else {
        setup_.sink->adopt(range.tensor, range.offset + at, bytes);
      }
      if (setup_.progress) setup_.progress(bytes.size());
    });
    if (again.value() != range.hash) {
      throw Error(ErrorCode::kEnvironment, "the file changed while it was in use",
                  setup_.folder.string(), "make sure that nothing else writes to it");
    }
  }
  if (setup_.check != nullptr) {
    TransferCheck::ReadRecord record;
    for (const JournalUnit::Read& read : unit.read) {
      record.ranges.push_back({static_cast<int>(read.source), static_cast<int64_t>(read.begin),
                               static_cast<int64_t>(read.end)});
    }
    for (const auto& [tensor, sum] : unit.sums) {
      record.sums.emplace_back(static_cast<size_t>(tensor), sum);
    }
    setup_.check->restore(record);
  }
  recorded_bytes_ += unit.num_bytes();
  resumed_bytes_ += unit.num_bytes();
}

void ResumableTransfer::end_unit(size_t unit) {
  Ledger done = std::exchange(ledger(), {});
  JournalUnit record;
  record.unit = unit;
  record.written = std::move(done.written);
  for (const auto& range : done.read.ranges) {
    record.read.push_back({static_cast<uint64_t>(range.source), static_cast<uint64_t>(range.begin),
                           static_cast<uint64_t>(range.end)});
  }
  std::map<uint64_t, uint64_t> sums;
  for (const auto& [tensor, sum] : done.read.sums) sums[tensor] += sum;
  record.sums.assign(sums.begin(), sums.end());
  bool due = false;
  {
    const std::lock_guard lock(mutex_);
    pending_bytes_ += record.num_bytes();
    pending_.push_back(std::move(record));
    due = pending_bytes_ >= setup_.interval_bytes ||
          std::chrono::steady_clock::now() - last_flush_ >= setup_.interval;
  }
  if (!due) return;
  // The others go on while one waits for the disk.
  const std::unique_lock lock(flush_mutex_, std::try_to_lock);
  if (lock) flush();
}

void ResumableTransfer::flush() {
  std::vector<JournalUnit> units;
  {
    const std::lock_guard lock(mutex_);
    units = std::move(pending_);
    pending_.clear();
    pending_bytes_ = 0;
    last_flush_ = std::chrono::steady_clock::now();
  }
  if (units.empty()) return;
  setup_.sink->write_fragments();
  // Behind the pages of the file: those have zeros where a panel is still to come.
  if (setup_.panels != nullptr) setup_.panels->write_fragments();
  std::set<size_t> files;
  uint64_t bytes = 0;
  for (const JournalUnit& unit : units) {
    bytes += unit.num_bytes();
    for (const JournalUnit::Written& range : unit.written) {
      files.insert(places_[range.tensor].file);
    }
  }
  for (const size_t file : files) {
    File::open_write(setup_.folder / (*setup_.files)[file].name).sync_data();
  }
  setup_.journal->append(units);
  recorded_bytes_ += bytes;
}

}  // namespace llmctl::reshard
