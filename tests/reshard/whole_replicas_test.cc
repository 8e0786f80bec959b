#include "reshard/whole_replicas.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <string>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/registry.h"
#include "formats/zip.h"
#include "reshard/convert.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::reshard;
namespace fs = std::filesystem;

namespace {

ConvertOptions reshard_to(const fs::path& source, const fs::path& target, int64_t tp) {
  ConvertOptions options;
  options.source = source;
  options.destination = target;
  options.format = "megatron";
  options.tp = tp;
  options.jobs = 2;
  return options;
}

}  // namespace

TEST_CASE("replicas: every tensor that a rank keeps whole repeats that of the first rank") {
  const Model model = open_model(test::golden("megatron/bloom/tp2"));
  const WholeReplicas replicas(model);
  const auto& tensors = model.checkpoint().tensors;
  size_t repeated = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    for (const int other : replicas.of(static_cast<int>(i))) {
      ++repeated;
      CHECK(tensors[static_cast<size_t>(other)].name == tensors[i].name);
      CHECK(tensors[static_cast<size_t>(other)].tp_rank == 1);
      CHECK(replicas.are_the_same(static_cast<int>(i), other));
      // Split tensors never are.
      CHECK(tensors[i].name.find("query_key_value") == std::string::npos);
      CHECK(tensors[i].name.find("dense_4h_to_h.weight") == std::string::npos);
    }
    if (tensors[i].name.find("input_layernorm") != std::string::npos && tensors[i].tp_rank == 0) {
      CHECK(replicas.of(static_cast<int>(i)).size() == 1);
    }
  }
  CHECK(repeated > 8);
}

TEST_CASE("replicas: one byte that differs on another rank is refused with both names") {
  for (const std::string name : {"bloom/tp2", "gpt2/v0-tp2", "yuan/merged-tp2"}) {
    CAPTURE(name);
    const test::TempDir dir;
    fs::copy(test::golden("megatron/" + name), dir / "source", fs::copy_options::recursive);
    Conversion(reshard_to(dir / "source", dir / "good", 1)).run();
    const formats::Checkpoint checkpoint = formats::read_checkpoint(dir / "source");
    const formats::StoredTensor* flipped = nullptr;
    for (const auto& tensor : checkpoint.tensors) {
      if (tensor.tp_rank == 1 && tensor.name.find("norm") != std::string::npos) flipped = &tensor;
    }
    REQUIRE(flipped != nullptr);
    const fs::path file = checkpoint.files[static_cast<size_t>(flipped->file)].path;
    std::string bytes = test::read_bytes(file);
    bytes[flipped->offset_bytes + flipped->num_bytes() - 1] ^= 1;
    test::write_bytes(file, bytes);
    for (const int64_t tp : {1, 2}) {
      try {
        Conversion(reshard_to(dir / "source", dir / "bad", tp)).run();
        FAIL_CHECK("accepted");
      } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::kInvalidInput);
        const std::string what = error.what();
        CHECK_MESSAGE(what.find(flipped->name) != std::string::npos, what);
        CHECK_MESSAGE(what.find("should hold the same values of") != std::string::npos, what);
      }
      CHECK_FALSE(fs::exists(dir / "bad"));
    }
  }
}

TEST_CASE("replicas: resharded archives carry the checksums of their entries") {
  const test::TempDir dir;
  Conversion(reshard_to(test::golden("megatron/yuan/merged-tp2"), dir / "out", 1)).run();
  size_t archives = 0;
  for (const auto& entry : fs::recursive_directory_iterator(dir / "out")) {
    if (entry.path().extension() != ".pt") continue;
    ++archives;
    const File file = File::open_read(entry.path());
    const formats::ZipArchive archive = formats::ZipArchive::open(file, entry.path().string());
    for (size_t i = 0; i < archive.size(); ++i) {
      CAPTURE(std::string(archive.entry(i).name));
      CHECK(formats::ZipArchive::crc_matches(file, archive.entry(i)));
    }
  }
  CHECK(archives == 1);
}
