#include "formats/zip.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "formats/core/error.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::formats;

namespace {

void put(std::string& out, uint64_t value, int width) {
  for (int i = 0; i < width; ++i, value >>= 8) out += static_cast<char>(value & 0xFF);
}

struct Entry {
  std::string name, payload;
};

std::string make_zip(const std::vector<Entry>& entries) {
  std::string out, directory;
  for (const Entry& entry : entries) {
    const size_t offset = out.size();
    for (const bool is_central : {false, true}) {
      std::string& to = is_central ? directory : out;
      put(to, is_central ? 0x02014b50 : 0x04034b50, 4);
      if (is_central) put(to, 0, 2);
      put(to, 0, 2);       // version
      put(to, 0x0800, 2);  // flags
      put(to, 0, 2);       // method
      put(to, 0, 8);       // time, date, CRC
      put(to, entry.payload.size(), 4);
      put(to, entry.payload.size(), 4);
      put(to, entry.name.size(), 2);
      put(to, 0, 2);
      if (is_central) {
        put(to, 0, 10);
        put(to, offset, 4);
      }
      to += entry.name;
    }
    out += entry.payload;
  }
  const size_t start = out.size();
  out += directory;
  const uint64_t short_count = std::min<uint64_t>(entries.size(), 0xFFFF);
  if (entries.size() > 0xFFFF) {
    const size_t end64 = out.size();
    put(out, 0x06064b50, 4);
    put(out, 44, 8);
    put(out, 0, 12);
    put(out, entries.size(), 8);
    put(out, entries.size(), 8);
    put(out, directory.size(), 8);
    put(out, start, 8);
    put(out, 0x07064b50, 4);
    put(out, 0, 4);
    put(out, end64, 8);
    put(out, 1, 4);
  }
  put(out, 0x06054b50, 4);
  put(out, 0, 4);
  put(out, short_count, 2);
  put(out, short_count, 2);
  put(out, directory.size(), 4);
  put(out, start, 4);
  put(out, 0, 2);
  return out;
}

ZipArchive open_bytes(const test::TempDir& dir, const std::string& bytes) {
  test::write_bytes(dir / "test.zip", bytes);
  return ZipArchive::open(File::open_read(dir / "test.zip"), "test.zip");
}

std::string refusal(const test::TempDir& dir, const std::string& bytes) {
  try {
    open_bytes(dir, bytes);
    return {};
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kInvalidInput);
    return e.what();
  }
}

}  // namespace

TEST_CASE("zip: reads archives of Python's zipfile") {
  const std::filesystem::path path = test::golden("zip/zipfile.zip");
  const std::string bytes = test::read_bytes(path);
  const File file = File::open_read(path);
  const ZipArchive archive = ZipArchive::open(file, "zipfile.zip");
  REQUIRE(archive.size() == 5);
  const auto payload = [&](const char* name) {
    const ZipEntry entry = archive.find(name).value();
    CHECK(ZipArchive::crc_matches(file, entry));
    return bytes.substr(entry.offset_bytes, entry.size_bytes);
  };
  CHECK(payload("stored.txt") == "stored");
  CHECK(payload("empty") == "");
  CHECK(payload("zip64.bin") == "forced zip64");
  CHECK(payload("héllo/☃") == "unicode");
  CHECK(archive.find("deflated.txt")->method == 8);
  CHECK(archive.find("stored.txt")->method == 0);
  CHECK(archive.entry(0).name == "stored.txt");
  CHECK_FALSE(archive.find("stored").has_value());
  CHECK_FALSE(archive.find("").has_value());
}

TEST_CASE("zip: reads sizes from the directory when they follow the payload") {
  const std::filesystem::path path = test::golden("zip/streamed.zip");
  const File file = File::open_read(path);
  const ZipArchive archive = ZipArchive::open(file, "streamed.zip");
  REQUIRE(archive.size() == 2);
  CHECK(archive.entry(0).size_bytes == 1000);
  CHECK(ZipArchive::crc_matches(file, archive.entry(0)));
  CHECK(ZipArchive::crc_matches(file, archive.entry(1)));
}

TEST_CASE("zip: tells a flipped bit by its CRC") {
  const test::TempDir dir;
  std::string bytes = test::read_bytes(test::golden("zip/streamed.zip"));
  bytes[500] = static_cast<char>(bytes[500] ^ 1);
  test::write_bytes(dir / "test.zip", bytes);
  const File file = File::open_read(dir / "test.zip");
  const ZipArchive archive = ZipArchive::open(file, "test.zip");
  CHECK_FALSE(ZipArchive::crc_matches(file, archive.entry(0)));
  CHECK(ZipArchive::crc_matches(file, archive.entry(1)));
}

TEST_CASE("zip: reads 70000 entries") {
  const test::TempDir dir;
  std::vector<Entry> entries;
  for (int i = 0; i < 70000; ++i)
    entries.push_back({"a/data/" + std::to_string(i), std::to_string(i)});
  const std::string bytes = make_zip(entries);
  test::write_bytes(dir / "many.zip", bytes);
  const test::Cost cost = test::measure([&] {
    const ZipArchive archive = ZipArchive::open(File::open_read(dir / "many.zip"), "many.zip");
    REQUIRE(archive.size() == 70000);
    for (const char* number : {"0", "9", "65535", "65536", "69999"}) {
      const auto entry = archive.find(std::string("a/data/") + number);
      REQUIRE(entry.has_value());
      CHECK(bytes.substr(entry->offset_bytes, entry->size_bytes) == number);
    }
  });
  CHECK(cost.peak_growth_bytes < int64_t{32} << 20);
}

TEST_CASE("zip: an archive may be a slice of a file") {
  const test::TempDir dir;
  const std::string inner = make_zip({{"a", "first"}, {"b", "second"}});
  test::write_bytes(dir / "outer", "PREFIX" + inner + "SUFFIX");
  const File file = File::open_read(dir / "outer");
  const ZipArchive archive = ZipArchive::open(file, 6, inner.size(), "outer");
  const ZipEntry entry = archive.find("b").value();
  CHECK(("PREFIX" + inner).substr(entry.offset_bytes, entry.size_bytes) == "second");
  CHECK_THROWS_AS(ZipArchive::open(file, 6, inner.size() + 1, "outer"), Error);
  CHECK_THROWS_AS(ZipArchive::open(file, 6, inner.size() + 7, "outer"), Error);
  CHECK_THROWS_AS(ZipArchive::open(file, UINT64_MAX, 2, "outer"), Error);
}

TEST_CASE("zip: refuses every prefix of a valid archive") {
  const test::TempDir dir;
  for (const char* name : {"zip/zipfile.zip", "zip/streamed.zip"}) {
    const std::string bytes = test::read_bytes(test::golden(name));
    REQUIRE(refusal(dir, bytes).empty());
    for (size_t n = 0; n < bytes.size(); ++n) {
      CAPTURE(name);
      CAPTURE(n);
      CHECK(!refusal(dir, bytes.substr(0, n)).empty());
    }
  }
}

TEST_CASE("zip: whatever it accepts after a flipped bit lies inside and apart") {
  const test::TempDir dir;
  const std::string bytes = test::read_bytes(test::golden("zip/zipfile.zip"));
  for (size_t i = 0; i < 8 * bytes.size(); i += 5) {
    std::string changed = bytes;
    changed[i / 8] = static_cast<char>(changed[i / 8] ^ (1 << (i % 8)));
    CAPTURE(i);
    try {
      const ZipArchive archive = open_bytes(dir, changed);
      std::vector<std::pair<uint64_t, uint64_t>> ranges;
      for (size_t e = 0; e < archive.size(); ++e) {
        const ZipEntry entry = archive.entry(e);
        ranges.push_back({entry.offset_bytes, entry.offset_bytes + entry.size_bytes});
      }
      std::sort(ranges.begin(), ranges.end());
      uint64_t end = 0;
      for (const auto& range : ranges) {
        CHECK(range.first >= end);
        end = range.second;
      }
      CHECK(end <= changed.size());
    } catch (const Error& e) {
      CHECK(e.code() == ErrorCode::kInvalidInput);
    }
  }
}

TEST_CASE("zip: refuses two end records that disagree") {
  const test::TempDir dir;
  std::vector<Entry> entries;
  for (int i = 0; i < 0x10000; ++i) entries.push_back({std::to_string(i), ""});
  std::string bytes = make_zip(entries);
  REQUIRE(refusal(dir, bytes).empty());
  bytes[bytes.size() - 22 + 8 + 2] = 5;  // the count in the classic record
  CHECK(refusal(dir, bytes).find("disagree") != std::string::npos);
}

TEST_CASE("zip: a directory too large to be honest is refused before it is read") {
  const test::TempDir dir;
  // 40 MiB of nothing that call themselves a directory.
  std::string bytes((size_t{40} << 20), '\0');
  const size_t size = bytes.size();
  put(bytes, 0x06054b50, 4);
  put(bytes, 0, 4);
  put(bytes, 10, 2);
  put(bytes, 10, 2);
  put(bytes, size, 4);
  put(bytes, 0, 4);
  put(bytes, 0, 2);
  test::write_bytes(dir / "test.zip", bytes);
  const test::Cost cost = test::measure([&] {
    CHECK_THROWS_AS(ZipArchive::open(File::open_read(dir / "test.zip"), "test.zip"), Error);
  });
  CHECK(cost.peak_growth_bytes < int64_t{4} << 20);
}
