#include "formats/pickle.h"

#include <doctest/doctest.h>

#include <bit>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "formats/core/error.h"
#include "tests/support/bytes.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace std::string_literals;
using namespace llmctl::formats;

namespace {

std::string to_hex(std::string_view bytes) {
  std::string out;
  char digits[3];
  for (const char c : bytes) {
    std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned char>(c));
    out += digits;
  }
  return out;
}

/// As render() in tests/golden/pickle/make.py.
std::string render(const PickleNode& node) {
  std::string out;
  const auto add_items = [&] {
    for (size_t i = 0; i < node.size(); ++i) out += render(node.item(i)) + ",";
  };
  switch (node.kind()) {
    case PickleKind::kNone:
      return "None";
    case PickleKind::kBool:
      return *node.find_bool() ? "True" : "False";
    case PickleKind::kInt:
      return std::to_string(*node.find_int());
    case PickleKind::kBigInt:
      return "big:" + to_hex(*node.find_bytes());
    case PickleKind::kFloat: {
      char digits[17];
      std::snprintf(digits, sizeof digits, "%016llx",
                    static_cast<unsigned long long>(std::bit_cast<uint64_t>(*node.find_float())));
      return std::string("float:") + digits;
    }
    case PickleKind::kBytes:
      return "bytes:" + to_hex(node.find_bytes().value());
    case PickleKind::kText:
      return "text:" + to_hex(*node.find_text());
    case PickleKind::kTuple:
      out = "(";
      add_items();
      return out + ")";
    case PickleKind::kList:
      out = "[";
      add_items();
      return out + "]";
    case PickleKind::kSet:
      out = "<";
      add_items();
      return out + ">";
    case PickleKind::kDict:
      out = "{";
      for (size_t i = 0; i < node.size(); ++i) {
        out += render(node.key(i)) + ":" + render(node.value(i)) + ",";
      }
      return out + "}";
    case PickleKind::kGlobal:
      return std::string(node.module()) + "." + std::string(node.name());
    case PickleKind::kObject:
      out = node.is_new_object() ? "new " : "call ";
      out += render(node.callable().value()) + render(node.arguments().value());
      if (node.state()) out += "state " + render(*node.state());
      if (node.list_items()) out += "items " + render(*node.list_items());
      if (node.dict_items()) out += "pairs " + render(*node.dict_items());
      return out;
    case PickleKind::kStorage:
    case PickleKind::kTensor:
      break;
  }
  return std::string(pickle_kind_name(node.kind()));
}

std::string proto(const std::string& body) { return "\x80\x02" + body + "."; }

std::string refusal(const std::string& bytes, const PickleLimits& limits = {}) {
  const test::ExactBuffer buffer(bytes);
  try {
    Pickle::parse(buffer.bytes(), "test", limits);
    return {};
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kInvalidInput);
    return e.what();
  }
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string repeat(const std::string& text, size_t n) {
  std::string out;
  out.reserve(text.size() * n);
  while (n-- > 0) out += text;
  return out;
}

}  // namespace

TEST_CASE("pickle: reads what Python pickled at every protocol") {
  const auto expected =
      nlohmann::json::parse(test::read_bytes(test::golden("pickle/expected.json")));
  REQUIRE(expected.size() >= 50);
  for (const auto& [name, text] : expected.items()) {
    CAPTURE(name);
    const std::string bytes = test::read_bytes(test::golden("pickle/" + name));
    const test::ExactBuffer buffer(bytes);
    const Pickle pickle = Pickle::parse(buffer.bytes(), name);
    CHECK(render(pickle.root()) == text.get<std::string>());
    CHECK(pickle.consumed_bytes() == bytes.size());
    CHECK(pickle.notes().empty());
  }
}

TEST_CASE("pickle: refuses every prefix of a valid pickle") {
  for (const char* name : {"pickle/objects.2.pkl", "pickle/objects.4.pkl", "pickle/numpy.5.pkl",
                           "pickle/texts.3.pkl", "pickle/ordered.2.pkl"}) {
    const std::string bytes = test::read_bytes(test::golden(name));
    REQUIRE(refusal(bytes).empty());
    for (size_t n = 0; n < bytes.size(); ++n) {
      CAPTURE(name);
      CAPTURE(n);
      CHECK(!refusal(bytes.substr(0, n)).empty());
    }
  }
}

TEST_CASE("pickle: says where STOP was and leaves what follows alone") {
  const test::ExactBuffer buffer(proto("K\x05") + "rest");
  CHECK(Pickle::parse(buffer.bytes(), "test").consumed_bytes() == 5);
}

TEST_CASE("pickle: keeps shared objects shared") {
  const std::string bytes = test::read_bytes(test::golden("pickle/shared.2.pkl"));
  const test::ExactBuffer buffer(bytes);
  const Pickle pickle = Pickle::parse(buffer.bytes(), "test");
  const PickleNode root = pickle.root();
  CHECK(root.item(0).index() == root.item(1).index());
  CHECK(root.item(0).index() == root.item(2).find("x")->index());
}

TEST_CASE("pickle: finds attributes of a Namespace by name") {
  const std::string bytes = test::read_bytes(test::golden("torch/megatron.legacy.main.pkl"));
  const test::ExactBuffer buffer(bytes);
  const Pickle pickle = Pickle::parse(buffer.bytes(), "test");
  const PickleNode args = pickle.root().find("args").value();
  CHECK(args.callable()->is_global("argparse", "Namespace"));
  CHECK(args.is_new_object());
  CHECK(args.find("num_layers")->find_int() == 2);
  CHECK(args.find("lr")->find_float() == 1.5e-4);
  CHECK(args.find("params_dtype")->is_global("torch", "bfloat16"));
  CHECK(args.find("fp16")->find_bool() == false);
  CHECK(args.find("vocab_file")->is_none());
  CHECK(args.find("pipeline_blocks")->size() == 2);
  CHECK(args.find("model_type")->callable()->is_global("megatron.core.enums", "ModelType"));
  CHECK(args.find("model_type")->arguments()->item(0).find_int() == 1);
  CHECK(args.find("big")->kind() == PickleKind::kBigInt);
  CHECK(args.find("data")->find_bytes() == std::string("\x00\xff\x80", 3));
  CHECK(args.find("names")->kind() == PickleKind::kSet);
  CHECK(args.find("size")->item(1).find_int() == 3);
  CHECK_FALSE(args.find("absent").has_value());
  CHECK(pickle.root().find("checkpoint_version")->find_float() == 3.0);
  CHECK(pickle.root().find("iteration")->find_int() == int64_t{2147483653});
  const PickleNode numpy_state =
      pickle.root().find("rng_state")->item(0).find("np_rng_state").value();
  CHECK(numpy_state.item(0).find_text() == "MT19937");
  CHECK(numpy_state.item(1).state()->item(4).find_bytes()->size() == 624 * 4);
  CHECK(args.describe() == "object of argparse.Namespace");
}

TEST_CASE("pickle: the last of equal keys wins and stands where the first stood") {
  const auto text = [](const std::string& s) {
    return "X" + std::string{char(s.size()), 0, 0, 0} + s;
  };
  SUBCASE("texts") {
    const test::ExactBuffer buffer(proto("}(" + text("a") + "K\x01" + text("b") + "K\x02" +
                                         text("a") + "K\x03" + text("a") + "K\x04u"));
    const Pickle pickle = Pickle::parse(buffer.bytes(), "file");
    CHECK(render(pickle.root()) == "{text:61:4,text:62:2,}");
    REQUIRE(pickle.notes().size() == 1);
    CHECK(pickle.notes()[0] ==
          "file: the key 'a' occurs more than once in a dict; the last one counts");
  }
  SUBCASE("numbers and over several batches") {
    const test::ExactBuffer buffer(
        proto("}(M\x01\x02K\x01K\x02K\x02u(J\x01\x02" + std::string(2, '\0') + "K\x03u"));
    const Pickle pickle = Pickle::parse(buffer.bytes(), "file");
    CHECK(render(pickle.root()) == "{513:3,2:2,}");
    CHECK(pickle.notes().size() == 1);
  }
  SUBCASE("None is equal to itself and a text is not equal to a number") {
    const test::ExactBuffer buffer(proto("}(NK\x01NK\x02" + text("1") + "K\x03K\x01K\x04u"));
    CHECK(render(Pickle::parse(buffer.bytes(), "file").root()) == "{None:2,text:31:3,1:4,}");
  }
}

TEST_CASE("pickle: builds tensors without calling anything") {
  const std::string bytes = test::read_bytes(test::golden("torch/megatron.legacy.main.pkl"));
  const test::ExactBuffer buffer(bytes);
  const Pickle pickle = Pickle::parse(buffer.bytes(), "test");
  const PickleNode weight = pickle.root()
                                .find("model")
                                ->find("language_model")
                                ->find("embedding")
                                ->find("word_embeddings")
                                ->find("weight")
                                .value();
  REQUIRE(weight.kind() == PickleKind::kTensor);
  CHECK(weight.scalar_type().name == "float16");
  CHECK(weight.tensor_shape() == std::vector<int64_t>{4, 8});
  CHECK(weight.tensor_strides() == std::vector<int64_t>{8, 1});
  CHECK(weight.tensor_offset() == 0);
  CHECK(weight.storage_num_elements() == 32);
  CHECK(weight.storage_location() == "cpu");
  CHECK(weight.tensor_storage().kind() == PickleKind::kStorage);
  CHECK(weight.tensor_storage().storage_key() == weight.storage_key());
}

TEST_CASE("pickle: a suspicious global is refused unless the caller insists") {
  const std::string bytes = proto("cposix\nsystem\n(X\x02" + std::string(3, '\0') + "idtR");
  CHECK(contains(refusal(bytes), "suspicious pickle: it names 'posix system'"));
  PickleLimits limits;
  limits.allow_suspicious = true;
  const test::ExactBuffer buffer(bytes);
  const Pickle pickle = Pickle::parse(buffer.bytes(), "test", limits);
  CHECK(render(pickle.root()) == "call posix.system(text:6964,)");
}

TEST_CASE("pickle: names like dangerous ones are no reason to refuse") {
  for (const char* name : {"cosmos\nmodel\n", "csystem\nFoo\n", "cmy.os\nThing\n", "ctorch\neval\n",
                           "c_io\nBytesIO\n", "c__builtin__\ngetattr\n", "csignal\nSIGTERM\n"}) {
    CAPTURE(name);
    CHECK(refusal(proto(name)).empty());
  }
}

TEST_CASE("pickle: refuses to pass its limits") {
  PickleLimits limits;
  SUBCASE("opcodes") {
    limits.max_opcodes = 1000;
    CHECK(refusal(proto(repeat("N0", 498) + "N"), limits).empty());
    CHECK(contains(refusal(proto(repeat("N0", 499) + "N"), limits), "more than 1000 opcodes"));
  }
  SUBCASE("depth of containers") {
    CHECK(refusal(proto(")" + repeat("\x85", 1000))).empty());
    CHECK(contains(refusal(proto(")" + repeat("\x85", 1001))), "nested deeper than 1000"));
    CHECK(refusal(proto(repeat("]", 1001) + repeat("a", 1000))).empty());
    CHECK(contains(refusal(proto(repeat("]", 1002) + repeat("a", 1001))), "nested deeper"));
  }
  SUBCASE("depth of marks") {
    CHECK(refusal(proto(repeat("(", 1000) + repeat("t", 1000))).empty());
    CHECK(contains(refusal(proto(repeat("(", 1001) + repeat("t", 1001))), "nested deeper"));
  }
  SUBCASE("depth of objects") {
    CHECK(contains(
        refusal(proto("(" + repeat("ca\nb\n", 1100) + ")" + repeat("\x81\x85", 1100) + "t")),
        "nested deeper"));
  }
  SUBCASE("one text") {
    limits.max_text_bytes = 10;
    CHECK(refusal(proto("\x8c\x0a" + std::string(10, 'x')), limits).empty());
    CHECK(
        contains(refusal(proto("\x8c\x0b" + std::string(11, 'x')), limits), "a text of 11 bytes"));
  }
  SUBCASE("memory") {
    limits.max_memory_bytes = 1 << 20;
    CHECK(contains(refusal(proto("(" + repeat("]", 100000) + "t"), limits), "more than 1 MiB"));
  }
}

TEST_CASE("pickle: memo numbers decide nothing about memory") {
  const std::string bytes = proto(
      "Nr\xff\xff\xff\xffr\xfe\xff\xff\xff"
      "0j\xff\xff\xff\xff");
  const test::ExactBuffer buffer(bytes);
  const test::Cost cost = test::measure([&] { Pickle::parse(buffer.bytes(), "test"); });
  CHECK(cost.peak_growth_bytes < (1 << 20));
  CHECK(render(Pickle::parse(buffer.bytes(), "test").root()) == "None");
}

TEST_CASE("pickle: a slot beyond a gap stays the same slot when the memo grows over it") {
  // Slot 5000 is far beyond the first entries and is set again once they have caught up.
  std::string body = "K\x01r" + std::string("\x88\x13\0\0", 4) + "0";
  for (int i = 0; i < 4000; ++i) {
    body += "Nr" + std::string{static_cast<char>(i & 0xFF), static_cast<char>(i >> 8), 0, 0} + "0";
  }
  body += "(j" + std::string("\x88\x13\0\0", 4) + "K\x02r" + std::string("\x88\x13\0\0", 4) + "j" +
          std::string("\x88\x13\0\0", 4) + "t";
  const std::string bytes = proto(body);
  const test::ExactBuffer buffer(bytes);
  CHECK(render(Pickle::parse(buffer.bytes(), "test").root()) == "(1,2,2,)");
}

TEST_CASE("pickle: bombs cost little time and memory") {
  const size_t mega = 1 << 20;
  const std::pair<std::string, std::string> bombs[] = {
      {"lists", proto(repeat("]", 48 * mega))},
      {"nones", proto(repeat("N", 48 * mega))},
      {"pushes and pops", proto(repeat("N0", 24 * mega + mega) + "N")},
      {"marks", proto(repeat("(", mega))},
      {"memo puts", proto("N" + repeat("\x94", 16 * mega))},
      {"memo slots",
       [&] {
         std::string body = "N";
         for (uint32_t i = 0; i < 4 * mega; ++i) {
           const uint32_t slot = i * 2654435761u;
           body += 'r';
           body.append(reinterpret_cast<const char*>(&slot), 4);
         }
         return proto(body);
       }()},
      {"globals", proto(repeat("ca\nb\n", 4 * mega))},
      {"dicts copied", proto("}q\0("s + repeat("NN", 1000) + "uccollections\nCounter\nq\1" +
                             repeat("0h\1h\0\x85R"s, mega))},
      {"tuples of one list", proto("]q\0("s + repeat("N", 100000) + "ectorch\nSize\nq\1" +
                                   repeat("0h\1h\0\x85R"s, mega))},
      {"a list appended to itself", proto("]q\0"s + repeat("h\0a"s, 16 * mega))},
  };
  for (const auto& [name, bytes] : bombs) {
    CAPTURE(name);
    const test::ExactBuffer buffer(bytes);
    std::string message;
    const test::Cost cost = test::measure([&] { message = refusal(bytes); });
    CAPTURE(message);
    MESSAGE(name << ": " << (cost.peak_growth_bytes >> 20) << " MiB");
    CHECK(!message.empty());
    // The copy of the input inside refusal() does not count.
    CHECK(cost.peak_growth_bytes - static_cast<int64_t>(bytes.size()) < int64_t{64} << 20);
  }
}

TEST_CASE("pickle: equal long keys in many dicts are compared once") {
  // Compared in every dict they would cost 200,000 times two mebibytes.
  const size_t length = 1 << 20;
  const std::string key = "X" + "\0\0\x10\0"s + std::string(length, 'k');
  const test::ExactBuffer buffer(
      proto("(" + key + "q\0"s + key + "q\1" + repeat("}(h\0K\1h\1K\2u"s, 200000) + "t"));
  const test::Cost cost = test::measure([&] {
    const Pickle pickle = Pickle::parse(buffer.bytes(), "test");
    CHECK(pickle.notes().size() == 8);
    const PickleNode dict = pickle.root().item(200001);
    CHECK(dict.size() == 1);
    CHECK(dict.value(0).find_int() == 2);
  });
  CHECK(cost.peak_growth_bytes < int64_t{64} << 20);
}
