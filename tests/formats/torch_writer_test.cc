#include "formats/torch_writer.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/crc32.h"
#include "formats/pickle_writer.h"
#include "formats/torch_file.h"
#include "formats/zip.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

namespace fs = std::filesystem;
using namespace llmctl;
using namespace llmctl::formats;

namespace {

/// The bytes that tests/interop/torch_writer_test.py expects in storage `index`.
std::string pattern(int index, DType dtype, uint64_t size) {
  std::string out;
  for (uint64_t i = 0; i < size; ++i) {
    const uint64_t value = i * 7 + static_cast<uint64_t>(index);
    out += static_cast<char>(dtype == DType::BOOL ? value % 2 : value % 251);
  }
  return out;
}

/// The file that the plan describes, with the CRCs in place.
std::string assemble(const FilePlan& plan, const std::vector<std::string>& payloads) {
  std::string out(plan.size_bytes, '\x55');
  uint64_t covered = 0;
  const auto place = [&](uint64_t offset, const std::string& bytes) {
    REQUIRE(is_inside(offset, bytes.size(), out.size()));
    out.replace(offset, bytes.size(), bytes);
    covered += bytes.size();
  };
  for (const auto& literal : plan.literals) place(literal.offset_bytes, literal.bytes);
  REQUIRE(plan.placements.size() == payloads.size());
  for (size_t i = 0; i < payloads.size(); ++i) {
    place(plan.placements[i].offset_bytes, payloads[i]);
  }
  CHECK(covered == out.size());
  for (const FilePlan::CrcPatch& patch : plan.crc_patches) {
    const uint32_t crc =
        crc32(std::as_bytes(std::span(payloads[static_cast<size_t>(patch.tensor)])));
    for (const uint64_t offset : {patch.local_offset_bytes, patch.directory_offset_bytes}) {
      for (size_t b = 0; b < 4; ++b) {
        CHECK(out[offset + b] == 0);
        out[offset + b] = static_cast<char>(crc >> (8 * b));
      }
    }
  }
  return out;
}

/// Compares with a golden that tests/interop/torch_writer_test.py has torch read. With
/// LLMCTL_UPDATE_GOLDENS set it writes the golden instead.
void check_golden(const std::string& name, const std::string& bytes) {
  const fs::path path = test::golden("torch_writer/" + name);
  if (std::getenv("LLMCTL_UPDATE_GOLDENS") != nullptr) test::write_bytes(path, bytes);
  CHECK(test::read_bytes(path) == bytes);
}

void check_crcs(const fs::path& path) {
  const File file = File::open_read(path);
  const ZipArchive archive = ZipArchive::open(file, path.string());
  for (size_t i = 0; i < archive.size(); ++i) {
    CAPTURE(std::string(archive.entry(i).name));
    CHECK(ZipArchive::crc_matches(file, archive.entry(i)));
  }
}

std::vector<TargetTensor> every_dtype() {
  std::vector<TargetTensor> tensors;
  for (const DTypeInfo& info : dtype_table()) {
    const std::string name(info.torch);
    tensors.push_back({name + ".scalar", info.dtype, {}});
    tensors.push_back({name + ".vector", info.dtype, {7}});
    tensors.push_back({name + ".rank4", info.dtype, {2, 1, 3, 2}});
    tensors.push_back({name + ".empty", info.dtype, {0, 3}});
  }
  return tensors;
}

}  // namespace

TEST_CASE("torch_writer: a state dict of every dtype is the file that torch was seen to load") {
  const std::vector<TargetTensor> tensors = every_dtype();
  const FilePlan plan = place_torch_state_dict("state_dict.pt", tensors);
  std::vector<std::string> payloads;
  for (size_t i = 0; i < tensors.size(); ++i) {
    payloads.push_back(pattern(static_cast<int>(i), tensors[i].dtype,
                               checked_num_bytes(tensors[i].dtype, tensors[i].shape).value()));
    CHECK(plan.placements[i].tensor == static_cast<int>(i));
    CHECK(plan.placements[i].offset_bytes % 64 == 0);
  }
  const std::string bytes = assemble(plan, payloads);
  check_golden("state_dict.pt", bytes);

  const test::TempDir dir;
  test::write_bytes(dir / "state_dict.pt", bytes);
  check_crcs(dir / "state_dict.pt");
  CHECK(is_torch_file(dir / "state_dict.pt"));
  std::vector<StoredTensor> found;
  std::vector<std::string> notes;
  read_torch_file(dir / "state_dict.pt", 0, found, notes);
  CHECK(notes.empty());
  REQUIRE(found.size() == tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    CHECK(found[i].name == tensors[i].name);
    CHECK(found[i].dtype == tensors[i].dtype);
    CHECK(found[i].shape == tensors[i].shape);
    CHECK(found[i].strides.empty());
    CHECK(bytes.substr(found[i].offset_bytes, found[i].num_bytes()) == payloads[i]);
  }
}

TEST_CASE("torch_writer: a Megatron checkpoint is carried over with its args corrected") {
  const fs::path source_path = test::golden("torch/megatron.pt");
  const std::string source_bytes = test::read_bytes(source_path);
  const TorchFile source = TorchFile::open(source_path);
  std::vector<TorchStorage> storages;
  std::vector<std::string> payloads;
  const auto copy_tensor = [&](PickleWriter& writer, const PickleNode& node) {
    const StoredTensor tensor = source.resolve(node, "tensor", 0);
    REQUIRE(tensor.strides.empty());
    writer.tensor(tensor.dtype, tensor.shape, std::to_string(storages.size()));
    storages.push_back({static_cast<int>(storages.size()), tensor.num_bytes()});
    payloads.push_back(source_bytes.substr(tensor.offset_bytes, tensor.num_bytes()));
  };

  PickleWriter writer;
  writer.begin_dict();
  for (size_t i = 0; i < source.root().size(); ++i) {
    writer.copy(source.root().key(i));
    const PickleNode value = source.root().value(i);
    if (source.root().key(i).find_text() != "args") {
      writer.copy(value, copy_tensor);
      continue;
    }
    writer.begin_namespace();
    const PickleNode attributes = value.state().value();
    for (size_t a = 0; a < attributes.size(); ++a) {
      writer.copy(attributes.key(a));
      if (attributes.key(a).find_text() == "num_layers") {
        writer.integer(4);
      } else {
        writer.copy(attributes.value(a));
      }
    }
    writer.end_namespace();
  }
  writer.end_dict();
  const FilePlan plan =
      place_torch_zip("megatron.pt", writer.finish(), storages, "model_optim_rng");
  check_golden("megatron.pt", assemble(plan, payloads));
}

TEST_CASE("torch_writer: the same arguments give the same bytes") {
  const std::vector<TargetTensor> tensors = every_dtype();
  const FilePlan a = place_torch_state_dict("a.pt", tensors);
  const FilePlan b = place_torch_state_dict("a.pt", tensors);
  REQUIRE(a.literals.size() == b.literals.size());
  for (size_t i = 0; i < a.literals.size(); ++i) {
    CHECK(a.literals[i].bytes == b.literals[i].bytes);
    CHECK(a.literals[i].offset_bytes == b.literals[i].offset_bytes);
  }
}

TEST_CASE("torch_writer: storages and offsets beyond 4 GiB read back") {
  const std::vector<TargetTensor> tensors = {
      {"before", DType::F32, {3}},        {"large", DType::U8, {(int64_t{1} << 32) + 100}},
      {"behind", DType::F32, {2, 2}},     {"exactly", DType::U8, {0xFFFFFFFF}},
      {"below", DType::U8, {0xFFFFFFFE}}, {"last", DType::I64, {5}},
  };
  const FilePlan plan = place_torch_state_dict("large.pt", tensors);
  const test::TempDir dir;
  {
    File file = File::create(dir / "large.pt");
    for (const auto& literal : plan.literals) {
      file.write_at(std::as_bytes(std::span(literal.bytes)), literal.offset_bytes);
    }
  }
  CHECK(fs::file_size(dir / "large.pt") == plan.size_bytes);
  std::vector<StoredTensor> found;
  std::vector<std::string> notes;
  read_torch_file(dir / "large.pt", 0, found, notes);
  REQUIRE(found.size() == tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    CHECK(found[i].offset_bytes == plan.placements[i].offset_bytes);
    CHECK(found[i].shape == tensors[i].shape);
  }
  if (const char* keep = std::getenv("LLMCTL_KEEP_LARGE")) fs::rename(dir / "large.pt", keep);
}

TEST_CASE("torch_writer: more than 65535 storages read back") {
  std::vector<TargetTensor> tensors;
  for (int i = 0; i < 66000; ++i) tensors.push_back({std::to_string(i), DType::U8, {1}});
  const FilePlan plan = place_torch_state_dict("many.pt", tensors);
  const test::TempDir dir;
  test::write_bytes(dir / "many.pt", assemble(plan, std::vector<std::string>(66000, "x")));
  std::vector<StoredTensor> found;
  std::vector<std::string> notes;
  read_torch_file(dir / "many.pt", 0, found, notes);
  REQUIRE(found.size() == 66000);
  CHECK(found[65999].offset_bytes == plan.placements[65999].offset_bytes);
}

TEST_CASE("torch_writer: refuses what cannot be laid out") {
  const std::vector<TorchStorage> huge = {{0, uint64_t{1} << 62}, {1, uint64_t{1} << 62}};
  CHECK_THROWS_AS(place_torch_zip("a.pt", "", huge), Error);
  CHECK_THROWS_AS(place_torch_zip("a.pt", "", {}, "a/b"), Error);
  CHECK_THROWS_AS(place_torch_zip("a.pt", "", {}, ""), Error);
  const std::vector<TargetTensor> overflow = {
      {"w", DType::F32, {int64_t{1} << 40, int64_t{1} << 40}}};
  CHECK_THROWS_AS(place_torch_state_dict("a.pt", overflow), Error);
}

TEST_CASE("crc32: of two parts is that of the whole") {
  const std::string bytes = pattern(3, DType::U8, 5000);
  const auto all = std::as_bytes(std::span(bytes));
  CHECK(crc32(std::as_bytes(std::span("123456789", 9))) == 0xCBF43926);
  for (const size_t cut : {0, 1, 7, 64, 1000, 4095, 4096, 4999, 5000}) {
    CAPTURE(cut);
    const uint32_t first = crc32(all.first(cut)), second = crc32(all.subspan(cut));
    CHECK(combine_crc32(first, second, 5000 - cut) == crc32(all));
    CHECK(crc32(all.subspan(cut), first) == crc32(all));
  }
}
