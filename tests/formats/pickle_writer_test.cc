#include "formats/pickle_writer.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "formats/core/error.h"
#include "tests/support/bytes.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::formats;
using namespace std::string_literals;

namespace {

template <typename Write>
std::string write(const Write& body) {
  PickleWriter writer;
  body(writer);
  return writer.finish();
}

}  // namespace

TEST_CASE("pickle_writer: integers take the fewest bytes that Python takes") {
  const std::pair<int64_t, std::string> cases[] = {
      {0, "K\0"s},
      {255, "K\xff"s},
      {256, "M\0\1"s},
      {65535, "M\xff\xff"s},
      {65536, "J\0\0\1\0"s},
      {-1, "J\xff\xff\xff\xff"s},
      {INT32_MAX, "J\xff\xff\xff\x7f"s},
      {INT32_MIN, "J\0\0\0\x80"s},
      {int64_t{1} << 31, "\x8a\5\0\0\0\x80\0"s},
      {-(int64_t{1} << 31) - 1, "\x8a\5\xff\xff\xff\x7f\xff"s},
      {INT64_MAX, "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"s},
      {INT64_MIN, "\x8a\x08\0\0\0\0\0\0\0\x80"s},
      {int64_t{1} << 39, "\x8a\6\0\0\0\0\x80\0"s},
      {-(int64_t{1} << 39), "\x8a\5\0\0\0\0\x80"s},
  };
  for (const auto& [value, bytes] : cases) {
    CAPTURE(value);
    const int64_t number = value;
    CHECK(write([&](PickleWriter& w) { w.integer(number); }) == "\x80\x02" + bytes + ".");
  }
}

TEST_CASE("pickle_writer: a tensor is written as PyTorch 1.13 writes it but for the memo") {
  // The reference bytes of docs/formats/torch.md without BINPUT.
  CHECK(write([](PickleWriter& w) {
          w.begin_dict();
          w.text("w");
          w.tensor(DType::BF16, {2, 3}, "0");
          w.end_dict();
        }) ==
        "\x80\x02}(X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storage"
        "ctorch\nBFloat16Storage\nX\1\0\0\0"
        "0X\3\0\0\0cpuK\6tQK\0(K\2K\3t(K\3K\1t\x89"
        "ccollections\nOrderedDict\n)RtRu."s);
}

TEST_CASE("pickle_writer: what it copies reads back as the same tree") {
  const auto expected =
      nlohmann::json::parse(test::read_bytes(test::golden("pickle/expected.json")));
  for (const auto& [name, text] : expected.items()) {
    CAPTURE(name);
    const std::string bytes = test::read_bytes(test::golden("pickle/" + name));
    const Pickle source = Pickle::parse(std::as_bytes(std::span(bytes)), name);
    const std::string once = write([&](PickleWriter& w) { w.copy(source.root()); });
    const Pickle copy = Pickle::parse(std::as_bytes(std::span(once)), name);
    // A copy of the copy is the same bytes only if nothing was lost or doubled on the way.
    CHECK(write([&](PickleWriter& w) { w.copy(copy.root()); }) == once);
    CHECK(copy.root().describe() == source.root().describe());
    CHECK(copy.root().size() == source.root().size());
  }
}

TEST_CASE("pickle_writer: shared and self-containing parts are copied once") {
  const std::string bytes = "\x80\x02]q\0(h\0)\x85q\1h\1h\1X\1\0\0\0aq\2h\2e."s;
  const Pickle source = Pickle::parse(std::as_bytes(std::span(bytes)), "test");
  const std::string written = write([&](PickleWriter& w) { w.copy(source.root()); });
  const Pickle copy = Pickle::parse(std::as_bytes(std::span(written)), "test");
  const PickleNode root = copy.root();
  REQUIRE(root.size() == 6);
  CHECK(root.item(0).index() == root.index());
  CHECK(root.item(1).index() == root.item(3).index());
  CHECK(root.item(4).index() == root.item(5).index());
}

namespace {

std::string le32(size_t n) {
  std::string bytes;
  for (int i = 0; i < 4; ++i) bytes += static_cast<char>(n >> (8 * i));
  return bytes;
}

/// `value`, then a list of `uses` times `use`.
std::string listed(const std::string& value, const std::string& use, int uses) {
  std::string bytes = "\x80\x02(" + value;
  for (int i = 0; i < uses; ++i) bytes += use;
  return bytes + "l.";
}

}  // namespace

TEST_CASE("pickle_writer: what two bytes stand for in the source does not fill the copy") {
  const size_t kLong = 100'000;
  const std::string word(kLong, 'x');
  // One integer of 100 kB, used 10,000 times.
  const std::string shared = listed("\x8b"s + le32(kLong) + word + "q\0"s, "h\0"s, 10'000);
  const Pickle one = Pickle::parse(std::as_bytes(std::span(shared)), "test");
  const std::string written = write([&](PickleWriter& w) { w.copy(one.root()); });
  CHECK(written.size() < kLong + 60'000);
  const Pickle copy = Pickle::parse(std::as_bytes(std::span(written)), "test");
  REQUIRE(copy.root().size() == 10'001);
  CHECK(copy.root().item(10'000).index() == copy.root().item(0).index());
  CHECK(copy.root().item(0).find_bytes() == word);

  // Encoding one text makes a node of its own each time.
  const std::string text = "X"s + le32(kLong) + word + "q\0"s;
  const std::string encode = "c_codecs\nencode\nq\1X\6\0\0\0latin1q\2"s;
  const std::string bytes = listed(text + encode, "h\1h\0h\2\x86R"s, 10'000);
  // A tuple in a list of the tuple, with much beside it, once per level of the copy.
  std::string nested = "\x80\x02("s;
  const auto get_list = [](int i) { return "h"s + static_cast<char>(i); };
  for (int i = 0; i < 100; ++i) nested += "]q"s + static_cast<char>(i);
  nested += "1(";
  for (int i = 0; i < 100; ++i) nested += get_list(i) + get_list(i);
  for (size_t i = 0; i < kLong; ++i) nested += "G33333333";
  nested += "tq\xff"s;
  for (int i = 0; i < 100; ++i) nested += get_list(i) + "h\xff" + "a0";
  nested += ".";
  for (const std::string& hostile : {bytes, nested}) {
    const Pickle source = Pickle::parse(std::as_bytes(std::span(hostile)), "test");
    PickleWriter writer;
    CHECK_THROWS_WITH_AS(writer.copy(source.root()), doctest::Contains("16 times"), Error);
    CHECK(writer.finish().size() < 17 * hostile.size() + 300'000);
  }
}

TEST_CASE("pickle_writer: tensors are copied only by who knows their storage") {
  const std::string bytes = test::read_bytes(test::golden("torch/megatron.legacy.main.pkl"));
  const Pickle source = Pickle::parse(std::as_bytes(std::span(bytes)), "test");
  PickleWriter writer;
  CHECK_THROWS_AS(writer.copy(source.root()), Error);
}
