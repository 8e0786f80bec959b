#include "reshard/executor.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <mutex>
#include <set>

#include "formats/core/block_digest.h"
#include "formats/core/error.h"
#include "reshard/file_sink.h"
#include "reshard/transfer_units.h"
#include "tests/reshard/transfer_test.h"

using namespace llmctl;
using namespace llmctl::reshard;
namespace fs = std::filesystem;

namespace {

/// Target tensors one after the other in a few files, with odd bytes in front of each.
std::vector<formats::FilePlan> place(const Plan& plan) {
  std::vector<formats::FilePlan> files(3);
  files[0].name = "first";
  files[1].name = "folder/second";
  files[2].name = "folder/deeper/third";
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    formats::FilePlan& file = files[i % 3];
    const size_t gap = i % 5 == 0 ? 4096 - file.size_bytes % 4096 : 1 + i * 37 % 300;
    file.literals.push_back({file.size_bytes, std::string(gap, static_cast<char>('a' + i % 26))});
    file.size_bytes += gap;
    file.placements.push_back({static_cast<int>(i), file.size_bytes});
    file.size_bytes += plan.tensors[i].num_bytes();
  }
  return files;
}

std::string expected_file(test::HandPlan& p, const formats::FilePlan& file) {
  std::string bytes(file.size_bytes, '\0');
  for (const auto& literal : file.literals) {
    bytes.replace(literal.offset_bytes, literal.bytes.size(), literal.bytes);
  }
  for (const auto& placement : file.placements) {
    const std::string tensor = p.expected(static_cast<size_t>(placement.tensor));
    bytes.replace(placement.offset_bytes, tensor.size(), tensor);
  }
  return bytes;
}

class MemoryTargets : public TensorSink {
 public:
  explicit MemoryTargets(const Plan& plan) {
    for (const PlannedTensor& tensor : plan.tensors) {
      tensors.emplace_back(tensor.num_bytes() + 1, '\x55');
    }
  }
  std::byte* memory(size_t tensor) override {
    return reinterpret_cast<std::byte*>(tensors[tensor].data());
  }
  void write(size_t, uint64_t, std::span<const std::byte>) override { FAIL("memory is written"); }

  std::vector<std::string> tensors;
};

}  // namespace

TEST_CASE("executor: the same bytes for any jobs any memory and any way of writing") {
  const test::TempDir dir;
  test::HandPlan p(dir.path());
  test::add_all_movements(p);
  const std::vector<formats::FilePlan> files = place(p.plan);
  std::vector<std::string> expected;
  for (const formats::FilePlan& file : files) expected.push_back(expected_file(p, file));

  struct Case {
    int jobs;
    uint64_t max_memory;
    WriteMode mode;
    bool leave_page_cache;
  };
  int number = 0;
  for (const Case& c : {Case{1, uint64_t{512} << 20, WriteMode::kCached, false},
                        Case{2, uint64_t{512} << 20, WriteMode::kDirect, true},
                        Case{3, uint64_t{1} << 20, WriteMode::kDirect, true},
                        Case{4, uint64_t{1} << 20, WriteMode::kCached, true},
                        Case{5, uint64_t{128} << 20, WriteMode::kWindowed, true},
                        Case{8, uint64_t{512} << 20, WriteMode::kDirect, false}}) {
    CAPTURE(c.jobs);
    CAPTURE(c.max_memory);
    const fs::path out = dir / ("out-" + std::to_string(number++));
    fs::create_directory(out);
    FileSink sink(out, files, p.plan.tensors.size(), c.mode);
    ExecuteOptions options;
    options.jobs = c.jobs;
    options.max_memory = c.max_memory;
    options.leave_page_cache = c.leave_page_cache;
    std::atomic<uint64_t> done{0};
    options.progress = [&](uint64_t bytes) { done += bytes; };
    CHECK(execute(p.plan, sink, options).empty());
    sink.finish();
    CHECK(done.load() == p.plan.bytes_out());
    const std::vector<FileDigest> digests = sink.digests();
    REQUIRE(digests.size() == files.size());
    for (size_t i = 0; i < files.size(); ++i) {
      CAPTURE(i);
      const std::string bytes = test::read_bytes(out / files[i].name);
      CHECK(bytes.size() == expected[i].size());
      CHECK_MESSAGE(bytes == expected[i], "bytes differ");
      CHECK(digests[i].name == files[i].name);
      CHECK(digests[i].size_bytes == files[i].size_bytes);
      CHECK(digests[i].digest == digest_file(out / files[i].name).hex());
    }
    fs::remove_all(out);
  }
}

TEST_CASE("executor: parts done one by one write the same files and read every element once") {
  const test::TempDir dir;
  test::HandPlan p(dir.path());
  test::add_all_movements(p);
  const std::vector<formats::FilePlan> files = place(p.plan);
  struct Reads : TransferObserver {
    std::mutex mutex;
    std::map<int, std::map<int64_t, size_t>> ranges;  // by source, from element, bytes
    bool twice = false;
    uint64_t bytes = 0;
    void on_read(int source, int64_t lo, std::span<const std::byte> data) override {
      const std::lock_guard lock(mutex);
      twice |= !ranges[source].emplace(lo, data.size()).second;
      bytes += data.size();
    }
    void on_write(size_t, int64_t, std::span<const std::byte>) override {}
  };
  uint64_t stored_bytes = 0;
  for (const auto& tensor : p.checkpoint().tensors) {
    stored_bytes += static_cast<uint64_t>(tensor.num_elements()) * dtype_bytes(tensor.dtype);
  }
  for (const WriteMode mode : {WriteMode::kDirect, WriteMode::kWindowed, WriteMode::kCached}) {
    for (const int num_parts : {2, 5, 40}) {
      if (num_parts == 40 && mode != WriteMode::kCached) continue;
      CAPTURE(write_mode_name(mode));
      CAPTURE(num_parts);
      const fs::path out = dir / "out";
      fs::create_directory(out);
      FileSink first(out, files, p.plan.tensors.size(), mode);
      Reads reads;
      ExecuteOptions options;
      options.jobs = 2;
      // Not by the memory that is there: a build with sanitizers takes more of it.
      options.unit_sizes = UnitSizes{uint64_t{4} << 20, uint64_t{8} << 20, uint64_t{128} << 20};
      options.observer = &reads;
      options.num_parts = num_parts;
      std::vector<uint64_t> moved(static_cast<size_t>(num_parts));
      for (options.part = num_parts - 1; options.part > 0; --options.part) {
        FileSink other(out, files, p.plan.tensors.size(), mode, Existing::kShare);
        std::atomic<uint64_t> done{0};
        options.progress = [&](uint64_t bytes) { done += bytes; };
        execute(p.plan, other, options);
        moved[static_cast<size_t>(options.part)] = done;
        first.take_over(other.hand_over());
      }
      options.progress = [&](uint64_t bytes) { moved[0] += bytes; };
      options.jobs = 1;
      execute(p.plan, first, options);
      first.finish();
      CHECK_FALSE(reads.twice);
      CHECK(reads.bytes == stored_bytes);
      const std::vector<FileDigest> digests = first.digests();
      for (size_t i = 0; i < files.size(); ++i) {
        CAPTURE(i);
        CHECK_MESSAGE(test::read_bytes(out / files[i].name) == expected_file(p, files[i]),
                      "bytes differ");
        CHECK(digests[i].digest == digest_file(out / files[i].name).hex());
      }
      // No transposed tensor can be parted, so the shares of a small job are rough.
      if (num_parts == 2) {
        for (const uint64_t bytes : moved) CHECK(bytes > p.plan.bytes_out() / 10);
      }
      fs::remove_all(out);
    }
  }
}

TEST_CASE("executor: memory targets are filled in place") {
  const test::TempDir dir;
  test::HandPlan p(dir.path());
  test::add_all_movements(p);
  for (const int jobs : {1, 4}) {
    MemoryTargets sink(p.plan);
    ExecuteOptions options;
    options.jobs = jobs;
    execute(p.plan, sink, options);
    for (size_t i = 0; i < p.plan.tensors.size(); ++i) {
      CAPTURE(p.plan.tensors[i].target.name);
      CHECK_MESSAGE(sink.tensors[i] == p.expected(i) + '\x55', "bytes differ");
    }
  }
}

TEST_CASE("executor: an observer sees every source element once and every target element once") {
  const test::TempDir dir;
  test::HandPlan p(dir.path());
  test::add_all_movements(p);

  struct Seen : TransferObserver {
    std::mutex mutex;
    std::map<int, std::map<int64_t, int64_t>> read;
    std::map<size_t, std::map<int64_t, int64_t>> written;
    bool twice = false;
    test::HandPlan* plan = nullptr;

    void on_read(int source, int64_t lo, std::span<const std::byte> bytes) override {
      const auto& tensor = plan->checkpoint().tensors[static_cast<size_t>(source)];
      const auto width = static_cast<int64_t>(dtype_bytes(tensor.dtype));
      const std::lock_guard lock(mutex);
      const auto hi = lo + static_cast<int64_t>(bytes.size()) / width;
      twice |= !read[source].emplace(lo, hi).second;
      const std::string& content = plan->contents[static_cast<size_t>(tensor.file)];
      CHECK(std::memcmp(content.data() + tensor.offset_bytes + lo * width, bytes.data(),
                        bytes.size()) == 0);
    }
    void on_write(size_t tensor, int64_t lo, std::span<const std::byte> bytes) override {
      const auto width = static_cast<int64_t>(dtype_bytes(plan->plan.tensors[tensor].target.dtype));
      const std::lock_guard lock(mutex);
      twice |= !written[tensor].emplace(lo, lo + static_cast<int64_t>(bytes.size()) / width).second;
    }
    static int64_t covered(const std::map<int64_t, int64_t>& ranges) {
      int64_t at = 0;
      for (const auto& [lo, hi] : ranges) {
        CHECK(lo == at);
        at = hi;
      }
      return at;
    }
  } seen;
  seen.plan = &p;
  fs::create_directory(dir / "out");
  FileSink sink(dir / "out", place(p.plan), p.plan.tensors.size(), WriteMode::kDirect);
  ExecuteOptions options;
  options.jobs = 3;
  options.observer = &seen;
  execute(p.plan, sink, options);
  sink.finish();
  CHECK_FALSE(seen.twice);
  for (size_t i = 0; i < p.plan.tensors.size(); ++i) {
    CAPTURE(i);
    const int64_t elements = checked_num_elements(p.plan.tensors[i].target.shape).value();
    CHECK(Seen::covered(seen.written[i]) == elements);
  }
  for (size_t i = 0; i < p.checkpoint().tensors.size(); ++i) {
    CAPTURE(i);
    CHECK(Seen::covered(seen.read[static_cast<int>(i)]) ==
          p.checkpoint().tensors[i].num_elements());
  }
}

TEST_CASE("executor: what moves between eight ranks is held in slabs and written in large pieces") {
  const test::TempDir dir;
  test::HandPlan p(dir.path());
  // Sizes are not touched by laying out: 2 GiB columns split eight ways, an embedding, a merge.
  const auto stored = [&](const Shape& shape) {
    formats::StoredTensor tensor;
    tensor.dtype = DType::BF16;
    tensor.shape = shape;
    tensor.offset_bytes = 64;
    tensor.file = static_cast<int>(p.checkpoint().files.size());
    p.checkpoint().files.push_back({"absent", 0});
    p.checkpoint().tensors.push_back(tensor);
    return static_cast<int>(p.checkpoint().tensors.size()) - 1;
  };
  const int64_t h = 8192, ffn = 22016, vocab = 135040;
  const int down = stored({h, ffn}), embed = stored({vocab, h});
  for (int64_t r = 0; r < 8; ++r) {
    p.op(p.target(DType::BF16, {h, ffn / 8}), down, r * ffn / 8, 0,
         {{h, ffn, ffn / 8}, {ffn / 8, 1, 1}});
    p.op(p.target(DType::BF16, {vocab / 8, h}), embed, r * vocab / 8 * h, 0,
         {{vocab / 8, h, h}, {h, 1, 1}});
  }
  const size_t whole = p.target(DType::BF16, {h, ffn});
  for (int64_t r = 0; r < 8; ++r) {
    p.op(whole, stored({h, ffn / 8}), 0, r * ffn / 8, {{h, ffn / 8, ffn}, {ffn / 8, 1, 1}});
  }
  const TransferUnits units(p.plan, {});
  CHECK(units.most_staged_bytes() == 0);
  CHECK(units.most_read_bytes() <= uint64_t{9} << 20);
  CHECK(units.most_block_bytes() <= uint64_t{9} << 20);
  uint64_t read = 0, small = 0, blocks = 0;
  for (const Unit& unit : units.units()) {
    REQUIRE(unit.kind == Unit::Kind::kStreamed);
    const Transfer transfer = units.transfer(unit);
    for (const SourceRead& r : transfer.reads) read += r.hi - r.lo;
    for (const TargetBlock& block : transfer.blocks) {
      ++blocks;
      small += (block.hi - block.lo) * 2 < 768 << 10 ? 1 : 0;
    }
  }
  CHECK(read == p.plan.bytes_in());
  CHECK(small <= 20);
  CHECK(blocks > 2000);
}
