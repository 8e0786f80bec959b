#include "reshard/transfer_check.h"

#include <doctest/doctest.h>

#include <cstring>
#include <random>

#include "formats/core/error.h"
#include "reshard/convert.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::reshard;

namespace {

std::filesystem::path sample() { return test::source_root() / "samples" / "llama-stories"; }

/// Keeps nothing.
struct NoSink : TensorSink {
  void write(size_t, uint64_t, std::span<const std::byte>) override {}
};

std::map<std::string, uint64_t> by_key(const std::vector<CanonicalDigest>& digests) {
  std::map<std::string, uint64_t> map;
  for (const CanonicalDigest& digest : digests) map[digest.key] = digest.digest;
  return map;
}

ConvertOptions to_ft(const std::filesystem::path& source, const std::filesystem::path& to, int tp,
                     std::optional<DType> dtype = {}) {
  ConvertOptions options;
  options.source = source;
  options.destination = to;
  options.format = "ft";
  options.tp = tp;
  options.dtype = dtype;
  return options;
}

}  // namespace

TEST_CASE("digest_stored: layouts of one model have the same digests and a cast has others") {
  test::TempDir dir;
  const Model source = open_model(sample());
  const auto want = by_key(digest_stored(source, 2));
  CHECK(want.size() == source.keys().size());
  for (const int tp : {1, 2, 4}) {
    CAPTURE(tp);
    const std::filesystem::path folder = dir / ("ft" + std::to_string(tp));
    Conversion(to_ft(sample(), folder, tp)).run();
    CHECK(by_key(digest_stored(open_model(folder), 2)) == want);
  }
  Conversion(to_ft(sample(), dir / "half", 1, DType::F16)).run();
  CHECK(by_key(digest_stored(open_model(dir / "half"), 2)) != want);
}

TEST_CASE("transfer_check: both sides agree for every tp and dtype") {
  test::TempDir dir;
  for (const int tp : {1, 2}) {
    for (const std::optional<DType> dtype :
         {std::optional<DType>(), std::optional<DType>(DType::F32),
          std::optional<DType>(DType::BF16)}) {
      CAPTURE(tp);
      const Conversion conversion(to_ft(sample(), dir / "x", tp, dtype));
      TransferCheck check(conversion.plan(), kernels::Overflow::kInf);
      CHECK(check.compared().size() == conversion.model().keys().size());
      NoSink sink;
      ExecuteOptions options;
      options.jobs = 2;
      options.observer = &check;
      execute(conversion.plan(), sink, options);
      const std::vector<CanonicalDigest> digests = check.finish();
      CHECK(digests.size() == conversion.model().keys().size());
      if (!dtype) {
        CHECK(by_key(digests) == by_key(digest_stored(conversion.model(), 1)));
      }
    }
  }
}

TEST_CASE("transfer_check: any wrong copy operation is caught and the tensor named") {
  test::TempDir dir;
  const Conversion conversion(to_ft(sample(), dir / "x", 2));
  std::mt19937 rng(5);
  for (int round = 0; round < 60; ++round) {
    Plan plan = conversion.plan();
    PlannedTensor& tensor = plan.tensors[rng() % plan.tensors.size()];
    CopyOp& op = tensor.ops[rng() % tensor.ops.size()];
    CAPTURE(tensor.target.name);
    // Shifted by one, a swapped pair of axes, or one index short.
    const int64_t n = op.box.extents[0];
    if (round % 3 == 0) {
      if (n < 2 || op.box.src_strides[0] < 1) continue;
      op.box.extents[0] = n - 1;
      op.src_offset += op.box.src_strides[0];
    } else if (round % 3 == 1) {
      if (op.box.num_axes < 2) continue;
      const int last = op.box.num_axes - 1;
      if (op.box.extents[last] != op.box.extents[0] || n < 2) continue;
      std::swap(op.box.src_strides[0], op.box.src_strides[last]);
    } else {
      if (n < 2) continue;
      op.box.extents[0] = n - 1;
      tensor.has_padding = true;
    }
    TransferCheck check(plan, kernels::Overflow::kInf);
    NoSink sink;
    ExecuteOptions options;
    options.observer = &check;
    execute(plan, sink, options);
    std::string line;
    try {
      check.finish();
    } catch (const Error& error) {
      line = error.what();
      CHECK(error.code() == ErrorCode::kInternal);
    }
    CHECK(line.find("is not what was read") != std::string::npos);
    CHECK(line.find(tensor.pieces.front().tensor.substr(0, 8)) != std::string::npos);
  }
}

TEST_CASE("transfer_check: one flipped bit between reading and writing is caught") {
  test::TempDir dir;
  const Conversion conversion(to_ft(sample(), dir / "x", 2));
  struct Flipping : TransferObserver {
    TransferCheck* check = nullptr;
    size_t tensor = 0;
    void on_read(int source, int64_t lo, std::span<const std::byte> bytes) override {
      check->on_read(source, lo, bytes);
    }
    void on_write(size_t i, int64_t lo, std::span<const std::byte> bytes) override {
      std::vector<std::byte> copy(bytes.begin(), bytes.end());
      if (i == tensor && lo == 0) copy[copy.size() / 2] ^= std::byte{4};
      check->on_write(i, lo, copy);
    }
  };
  for (size_t i = 0; i < conversion.plan().tensors.size(); i += 7) {
    CAPTURE(i);
    TransferCheck check(conversion.plan(), kernels::Overflow::kInf);
    Flipping observer;
    observer.check = &check;
    observer.tensor = i;
    NoSink sink;
    ExecuteOptions options;
    options.observer = &observer;
    execute(conversion.plan(), sink, options);
    CHECK_THROWS_AS(check.finish(), Error);
  }
}
