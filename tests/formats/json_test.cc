#include "formats/json.h"

#include <doctest/doctest.h>

#include <chrono>

#include "formats/core/error.h"
#include "formats/json_scanner.h"
#include "tests/support/bytes.h"

namespace llmctl::formats {
namespace {

using test::ExactBuffer;

/// Hands `text` out in windows of `window` bytes, as a file would come.
JsonScanner scanner(std::span<const std::byte> text, size_t window = 1 << 20) {
  return JsonScanner(
      [text, window]() mutable {
        const auto part = text.first(std::min(window, text.size()));
        text = text.subspan(part.size());
        return part;
      },
      "scan");
}

bool scanner_accepts(const std::string& text, size_t window = 1 << 20) {
  const ExactBuffer buffer(text);
  try {
    JsonScanner json = scanner(buffer.bytes(), window);
    json.skip_value();
    json.finish(true);
    return true;
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kInvalidInput);
    return false;
  }
}

bool parser_accepts(const std::string& text) {
  const ExactBuffer buffer(text);
  try {
    parse_json(buffer.text(), "parse");
    return true;
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kInvalidInput);
    return false;
  }
}

// One list for both readers: nlohmann's grammar is the scanner's oracle.
const std::vector<std::string> kTexts = {
    "{}",
    "[]",
    "null",
    "true",
    "false",
    "0",
    "-0",
    "1.5e-3",
    "1E+2",
    R"("")",
    R"("\u00e9\n\/")",
    R"("\ud83d\ude00")",
    R"({"a":[1,{"b":null}],"c":"d"})",
    " [ 1 , 2 ] \n",
    "[[],{},[{}]]",
    "",
    " ",
    "{",
    "[",
    "]",
    "}",
    "[1",
    "[1,",
    "[1,]",
    "[,1]",
    "[1 2]",
    R"({"a")",
    R"({"a":)",
    R"({"a":1)",
    R"({"a":1,})",
    R"({,"a":1})",
    R"({a:1})",
    R"({"a" 1})",
    R"({1:1})",
    "nul",
    "nulll",
    "truE",
    "01",
    "-",
    "-a",
    "1.",
    ".5",
    "1e",
    "1e+",
    "+1",
    "0x1",
    "1 1",
    "{} {}",
    R"("a)",
    R"("\)",
    R"("\x")",
    R"("\u12")",
    R"("\u12g4")",
    R"("\ud800")",
    R"("\ud800\u0041")",
    R"("\udc00")",
    "\"\n\"",
    "\"\x01\"",
    "\"\xFF\"",
    "\"\xC0\x80\"",
    "\"\xE0\x80\x80\"",
    "\"\xED\xA0\x80\"",
    "\"\xF4\x90\x80\x80\"",
    "\"\xF5\x80\x80\x80\"",
    "\"\xC3\"",
    "\"\xC3\xA9\"",
    "\"\xF0\x9F\x98\x80\"",
    "[1] // c",
    "/* c */ 1",
    "NaN",
    "Infinity",
    "'a'",
    "[1}",
    R"({"a":1])",
    "\x0B[]",
};

TEST_CASE("json: scanner and parser agree with nlohmann on what is JSON") {
  for (const std::string& text : kTexts) {
    CAPTURE(text);
    const bool expected = nlohmann::json::accept(text);
    CHECK(parser_accepts(text) == expected);
    for (const size_t window : {size_t{1}, size_t{3}, size_t{1} << 20}) {
      CHECK(scanner_accepts(text, window) == expected);
    }
  }
}

TEST_CASE("json: a zero byte does not end the text") {
  using namespace std::string_literals;
  for (const std::string& text : {"{}\0"s, "{}\0{}"s, "[1\0]"s, "\0"s, "\"\0\""s}) {
    CHECK(!parser_accepts(text));
    CHECK(!scanner_accepts(text));
  }
}

TEST_CASE("json: every prefix of a valid object is refused") {
  const std::string text = R"({"a":[1,{"b":null,"c":"\u00e9"}],"d":{"e":-1.5e3}})";
  REQUIRE(parser_accepts(text));
  REQUIRE(scanner_accepts(text));
  for (size_t size = 0; size < text.size(); ++size) {
    CAPTURE(size);
    CHECK(!parser_accepts(text.substr(0, size)));
    CHECK(!scanner_accepts(text.substr(0, size), 2));
  }
}

TEST_CASE("json: refuses duplicate keys in one object but not in two") {
  CHECK(!parser_accepts(R"({"a":1,"a":2})"));
  CHECK(!parser_accepts(R"({"x":{"a":1,"\u0061":2}})"));
  CHECK(parser_accepts(R"({"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]})"));
}

TEST_CASE("json: an object of very many keys is read in time linear in the text") {
  std::string text = "{";
  constexpr int kKeys = 200'000;
  for (int i = 0; i < kKeys; ++i) text.append("\"").append(std::to_string(i)).append("\":1,");
  text.back() = '}';
  // Searching each object for each key, as the library's own builder does, takes minutes.
  const auto start = std::chrono::steady_clock::now();
  const auto json = parse_json(text, "x");
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
  CHECK(json.size() == kKeys);
  CHECK(json.back() == 1);
  CHECK(json.begin().key() == "0");
  text.back() = ',';
  CHECK(!parser_accepts(text + "\"77\":1}"));
}

TEST_CASE("json: 64 levels are read and 65 refused whatever their number") {
  const auto nest = [](size_t n, char open, char close) {
    return std::string(n, open) + std::string(n, close);
  };
  CHECK(parser_accepts(nest(64, '[', ']')));
  CHECK(scanner_accepts(nest(64, '[', ']')));
  CHECK(!parser_accepts(nest(65, '[', ']')));
  CHECK(!scanner_accepts(nest(65, '[', ']')));
  CHECK(!parser_accepts(std::string(1 << 20, '[')));
  CHECK(!scanner_accepts(std::string(1 << 20, '[')));
  std::string objects;
  for (int i = 0; i < 1 << 18; ++i) objects += "{\"a\":";
  CHECK(!parser_accepts(objects));
  CHECK(!scanner_accepts(objects));
}

TEST_CASE("json: a message is one line whatever the text holds") {
  for (const std::string text : {"{\"a\n\x1b[31m", "[\"\xFF\"]", "{\"a\":1,\"a\":2}"}) {
    try {
      parse_json(text, "config.json");
      FAIL_CHECK("accepted");
    } catch (const Error& e) {
      const std::string line = e.what();
      CHECK(line.rfind("config.json: ", 0) == 0);
      CHECK(line.find('\n') == std::string::npos);
      CHECK(line.find('\x1b') == std::string::npos);
    }
  }
}

TEST_CASE("json: sizes are non-negative integers that fit 64 bits") {
  const auto size = [](const std::string& text) {
    return get_size(parse_json(text, "x"), "x", "n");
  };
  CHECK(size("0") == 0);
  CHECK(size("9223372036854775807") == INT64_MAX);
  for (const char* text : {"-1", "1.0", "1e3", "true", "null", "\"1\"", "[]", "9223372036854775808",
                           "18446744073709551616"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(size(text), Error);
  }
}

TEST_CASE("json scanner: returns texts unescaped and numbers exactly") {
  const ExactBuffer buffer(
      R"({"k\u00e9\ud83d\ude00\"":"a\\b\/\b\f\n\r\t","n":18446744073709551615,"f":1.5,"l":[0,7]})");
  JsonScanner json = scanner(buffer.bytes(), 1);
  std::string key;
  json.enter_object();
  REQUIRE(json.next_key(key, 100));
  CHECK(key == "ké😀\"");
  CHECK(json.is_at_text());
  CHECK(json.read_text(100) == "a\\b/\b\f\n\r\t");
  REQUIRE(json.next_key(key, 100));
  CHECK(json.read_size() == UINT64_MAX);
  REQUIRE(json.next_key(key, 100));
  CHECK(!json.read_any_size());
  REQUIRE(json.next_key(key, 100));
  json.enter_array();
  REQUIRE(json.next_element());
  CHECK(json.read_size() == 0);
  REQUIRE(json.next_element());
  CHECK(json.read_any_size() == 7);
  CHECK(!json.next_element());
  CHECK(!json.next_key(key, 100));
  json.finish(false);
}

TEST_CASE("json scanner: refuses sizes that do not fit and texts that are too long") {
  const auto refuses_size = [](const std::string& text) {
    const ExactBuffer buffer(text);
    JsonScanner json = scanner(buffer.bytes());
    CHECK_THROWS_AS(json.read_size(), Error);
  };
  for (const char* text :
       {"18446744073709551616", "99999999999999999999999", "-1", "1.0", "1e0", "01", "\"1\"", ""}) {
    refuses_size(text);
  }
  const ExactBuffer buffer("\"12345\"");
  JsonScanner exact = scanner(buffer.bytes());
  CHECK(exact.read_text(5) == "12345");
  JsonScanner longer = scanner(buffer.bytes());
  CHECK_THROWS_AS(longer.read_text(4), Error);
}

}  // namespace
}  // namespace llmctl::formats
