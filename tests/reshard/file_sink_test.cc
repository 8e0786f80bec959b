#include "reshard/file_sink.h"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <random>
#include <thread>

#include "formats/core/aligned_buffer.h"
#include "formats/core/block_digest.h"
#include "formats/core/error.h"
#include "formats/crc32.h"
#include "reshard/disk_probe.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"

using namespace llmctl;
using namespace llmctl::reshard;
namespace fs = std::filesystem;

namespace {

constexpr WriteMode kModes[] = {WriteMode::kDirect, WriteMode::kWindowed, WriteMode::kCached};

/// One file: a literal, a tensor of `size` bytes at `offset`, a literal behind it.
formats::FilePlan one_tensor(uint64_t offset, uint64_t size, const std::string& tail) {
  formats::FilePlan plan;
  plan.name = "file";
  plan.size_bytes = offset + size + tail.size();
  if (offset > 0) plan.literals.push_back({0, std::string(offset, 'h')});
  plan.placements.push_back({0, offset});
  if (!tail.empty()) plan.literals.push_back({offset + size, tail});
  return plan;
}

std::string random_bytes(size_t size) {
  std::mt19937_64 random(5);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

/// Writes [lo, hi) of the tensor from memory at the phase that the sink asks for.
void write_part(FileSink& sink, const std::string& bytes, size_t lo, size_t hi) {
  AlignedBuffer buffer(hi - lo + 2 * kDirectAlignment);
  std::byte* at = buffer.data() + sink.phase(0, lo).value_or(0);
  std::memcpy(at, bytes.data() + lo, hi - lo);
  sink.write(0, lo, {at, hi - lo});
}

}  // namespace

TEST_CASE("file sink: pieces of any size in any order make the file and its digest") {
  const std::string bytes = random_bytes(300000);
  for (const WriteMode mode : kModes) {
    for (const uint64_t offset : {0, 1, 64, 4095, 4096, 9000}) {
      CAPTURE(write_mode_name(mode));
      CAPTURE(offset);
      const test::TempDir dir;
      FileSink sink(dir.path(), {one_tensor(offset, bytes.size(), "tail")}, 1, mode);
      std::vector<std::pair<size_t, size_t>> parts;
      std::mt19937 random(static_cast<unsigned>(offset));
      for (size_t lo = 0, hi = 0; lo < bytes.size(); lo = hi) {
        hi = std::min(bytes.size(), lo + 1 + random() % (random() % 3 == 0 ? 100 : 30000));
        parts.emplace_back(lo, hi);
      }
      std::shuffle(parts.begin(), parts.end(), random);
      std::vector<std::thread> threads;
      for (size_t t = 0; t < 3; ++t) {
        threads.emplace_back([&, t] {
          for (size_t i = t; i < parts.size(); i += 3) {
            write_part(sink, bytes, parts[i].first, parts[i].second);
          }
        });
      }
      for (std::thread& thread : threads) thread.join();
      sink.finish();
      CHECK(test::read_bytes(dir / "file") == std::string(offset, 'h') + bytes + "tail");
      CHECK(sink.digests().at(0).digest == digest_file(dir / "file").hex());
    }
  }
}

TEST_CASE("file sink: checksums of tensors written out of order reach their literals") {
  const std::string bytes = random_bytes(50001);
  for (const WriteMode mode : kModes) {
    const test::TempDir dir;
    formats::FilePlan plan = one_tensor(100, bytes.size(), std::string(60, 't'));
    plan.crc_patches.push_back({0, 96, 100 + bytes.size() + 3});
    FileSink sink(dir.path(), {plan}, 1, mode);
    for (const auto& [lo, hi] : {std::pair{40000, 50001}, {0, 7}, {4096, 40000}, {7, 4096}}) {
      write_part(sink, bytes, static_cast<size_t>(lo), static_cast<size_t>(hi));
    }
    sink.finish();
    const std::string written = test::read_bytes(dir / "file");
    for (const size_t at : {size_t{96}, 100 + bytes.size() + 3}) {
      uint32_t crc = 0;
      for (size_t i = 4; i-- > 0;) crc = crc << 8 | static_cast<unsigned char>(written[at + i]);
      CHECK(crc == formats::crc32(std::as_bytes(std::span(bytes))));
    }
    CHECK(sink.digests().at(0).digest == digest_file(dir / "file").hex());
  }
}

TEST_CASE("file sink: processes that each write a part of a file make it together") {
  const std::string bytes = random_bytes(200001);
  for (const WriteMode mode : kModes) {
    CAPTURE(write_mode_name(mode));
    const test::TempDir dir;
    formats::FilePlan plan = one_tensor(100, bytes.size(), std::string(60, 't'));
    plan.crc_patches.push_back({0, 10, 100 + bytes.size() + 20});
    FileSink first(dir.path(), {plan}, 1, mode);
    FileSink second(dir.path(), {plan}, 1, mode, Existing::kShare);
    FileSink third(dir.path(), {plan}, 1, mode, Existing::kShare);
    // Three of them have bytes of one page, and write it for a journal while it is not whole.
    write_part(second, bytes, 50000, 53001);
    write_part(first, bytes, 0, 50000);
    write_part(third, bytes, 53001, 120000);
    for (FileSink* sink : {&third, &first, &second}) sink->write_fragments();
    write_part(second, bytes, 120000, 170000);
    write_part(third, bytes, 170000, 170005);
    write_part(first, bytes, 170005, bytes.size());
    first.take_over(third.hand_over());
    first.take_over(second.hand_over());
    first.finish();
    std::string expected = std::string(100, 'h') + bytes + std::string(60, 't');
    const uint32_t crc = formats::crc32(std::as_bytes(std::span(bytes)));
    for (const size_t at : {size_t{10}, 100 + bytes.size() + 20}) {
      std::memcpy(expected.data() + at, &crc, 4);
    }
    CHECK(test::read_bytes(dir / "file") == expected);
    CHECK(first.digests().at(0).digest == digest_file(dir / "file").hex());
  }
}

TEST_CASE("file sink: thousands of files in folders need few descriptors") {
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  rlimit few = before;
  few.rlim_cur = 256;
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &few) == 0);
  const test::TempDir dir;
  std::vector<formats::FilePlan> plans;
  for (int i = 0; i < 1500; ++i) {
    formats::FilePlan plan = one_tensor(0, static_cast<uint64_t>(i * 7), "");
    plan.name = "folder" + std::to_string(i % 3) + "/file" + std::to_string(i);
    plan.placements[0].tensor = i;
    plans.push_back(plan);
  }
  FileSink sink(dir.path(), plans, plans.size(), WriteMode::kDirect);
  const std::string bytes = random_bytes(7 * 1500);
  const auto part = [&](size_t i, size_t lo, size_t hi) {
    sink.write(i, lo, std::as_bytes(std::span(bytes)).subspan(lo, hi - lo));
  };
  for (size_t i = 1; i < plans.size(); ++i) part(i, 0, i * 3);
  for (size_t i = 1; i < plans.size(); ++i) part(i, i * 3, i * 7);
  sink.finish();
  ::setrlimit(RLIMIT_NOFILE, &before);
  for (size_t i = 0; i < plans.size(); i += 13) {
    CHECK(test::read_bytes(dir / plans[i].name) == bytes.substr(0, i * 7));
    CHECK(sink.digests()[i].digest == digest_file(dir / plans[i].name).hex());
  }
}

TEST_CASE("file sink: bytes that lie in a file already are shared or written but there") {
  const test::TempDir dir;
  const std::string bytes = random_bytes(5 * 4096 + 100);
  test::write_bytes(dir / "source", std::string(8192 + 64, 's') + bytes);
  const File source = File::open_read(dir / "source");
  for (const WriteMode mode : kModes) {
    for (const uint64_t offset : {4096 + 64, 4096 + 65}) {
      FileSink sink(dir.path(), {one_tensor(offset, bytes.size(), "tail")}, 1, mode);
      AlignedBuffer buffer(bytes.size() + 4096);
      std::byte* at = buffer.data() + sink.phase(0, 0).value_or(0);
      std::memcpy(at, bytes.data(), bytes.size());
      sink.write_unchanged(0, 0, {at, bytes.size()}, {source.descriptor(), 8192 + 64});
      sink.finish();
      CHECK(test::read_bytes(dir / "file") == std::string(offset, 'h') + bytes + "tail");
      CHECK(sink.digests().at(0).digest == digest_file(dir / "file").hex());
      // Most file systems share nothing; those that do, only whole blocks that lie alike.
      CHECK((sink.shared_bytes() == 0 || sink.shared_bytes() == 4 * 4096));
      CHECK((offset % 4096 == 64 || sink.shared_bytes() == 0));
      MESSAGE(write_mode_name(mode), ": ", sink.shared_bytes(), " bytes shared");
      fs::remove(dir / "file");
    }
  }
}

TEST_CASE("file sink: a byte that was never written is found") {
  const test::TempDir dir;
  FileSink sink(dir.path(), {one_tensor(10, 10000, "tail")}, 1, WriteMode::kDirect);
  const std::string bytes = random_bytes(10000);
  write_part(sink, bytes, 0, 5000);
  write_part(sink, bytes, 5001, 10000);
  try {
    sink.finish();
    FAIL("finished");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kInternal);
    CHECK(std::string(error.what()).find("1 bytes were never written") != std::string::npos);
  }
}

TEST_CASE("file sink: a disk that is too small shows before the first byte") {
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  rlimit small = before;
  small.rlim_cur = 1 << 20;
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  const test::TempDir dir;
  std::string message;
  try {
    const FileSink sink(dir.path(), {one_tensor(0, 2 << 20, "")}, 1, WriteMode::kDirect);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kEnvironment);
    message = error.what();
  }
  ::setrlimit(RLIMIT_FSIZE, &before);
  CHECK_MESSAGE(message.find("cannot reserve 2097152 bytes") != std::string::npos, message);
}

TEST_CASE("file sink: small jobs stay in the page cache and the probe leaves nothing behind") {
  const test::TempDir dir;
  CHECK(choose_write_mode(dir.path(), false) == WriteMode::kCached);
  CHECK(choose_write_mode(dir.path(), true) != WriteMode::kCached);
  test::write_bytes(dir / "source", random_bytes(1 << 20));
  fs::create_directory(dir / "target");
  const DiskRate rate = probe_disk(dir / "source", dir / "target", 0.2, 2);
  CHECK(rate.low > 0);
  CHECK(rate.low < rate.high);
  CHECK(fs::is_empty(dir / "target"));
  CHECK_THROWS_AS(probe_disk(dir / "absent", dir / "target", 0.2, 2), Error);
}
