#include "formats/ini.h"

#include <doctest/doctest.h>

#include <sstream>

#include "formats/core/error.h"
#include "tests/support/bytes.h"
#include "tests/support/test_data.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;

TEST_CASE("ini: reads what FasterTransformer's INIReader reads") {
  int count = 0;
  for (const char* name : {"gpt2", "bloom", "quirks"}) {
    const fs::path path = test::golden(std::string("ini/") + name + ".ini");
    const Ini ini = Ini::parse(test::read_bytes(path), path.string());
    std::istringstream lines(
        test::read_bytes(test::golden(std::string("ini/") + name + ".expected")));
    for (std::string line; std::getline(lines, line); ++count) {
      CAPTURE(line);
      std::vector<std::string> fields;
      std::istringstream stream(line);
      for (std::string field; std::getline(stream, field, '\t');) fields.push_back(field);
      REQUIRE(fields.size() == 6);
      const auto text = ini.find(fields[0], fields[1]);
      REQUIRE(text.has_value());
      std::string shown;
      for (const char c : *text) shown += c == '\n' ? std::string("\\n") : std::string(1, c);
      CHECK(shown == fields[2]);
      // INIReader takes the 1 of 1E-05; an integer that is none is refused here.
      if (fields[3] == "-" || fields[2].find("E-") != std::string::npos ||
          fields[2].find("e-") != std::string::npos) {
        CHECK_THROWS_AS(ini.find_integer(fields[0], fields[1]), Error);
      } else {
        CHECK(ini.find_integer(fields[0], fields[1]) == std::stoll(fields[3]));
      }
      // Hexadecimal numbers are integers only.
      if (fields[4] == "-" || fields[2].rfind("0x", 0) == 0) {
        CHECK_THROWS_AS(ini.find_real(fields[0], fields[1]), Error);
      } else {
        CHECK(ini.find_real(fields[0], fields[1]) == std::stod(fields[4]));
      }
      if (fields[5] == "-") {
        CHECK_THROWS_AS(ini.find_bool(fields[0], fields[1]), Error);
      } else {
        CHECK(ini.find_bool(fields[0], fields[1]) == (fields[5] == "1"));
      }
    }
  }
  CHECK(count > 30);
}

TEST_CASE("ini: absent keys are nothing and required ones are refused") {
  const Ini ini = Ini::parse("[gpt]\nhead_num = 4\n", "config.ini");
  CHECK(ini.sections() == std::vector<std::string>{"gpt"});
  CHECK(ini.has_section("GPT"));
  CHECK(!ini.has_section("gptj"));
  CHECK(!ini.find("gpt", "num_layer"));
  CHECK(!ini.find("gptj", "head_num"));
  CHECK(ini.get_integer("gpt", "HEAD_NUM") == 4);
  CHECK_THROWS_WITH(ini.get("gpt", "num_layer"), "config.ini: [gpt] num_layer: missing");
  CHECK_THROWS_WITH(ini.get_integer("gpt", "num_layer"), "config.ini: [gpt] num_layer: missing");
}

TEST_CASE("ini: refuses numbers that are none or too large") {
  const Ini ini = Ini::parse(
      "[a]\nnone = None\nbig = 99999999999999999999\nmixed = 12abc\n"
      "octal = 08\nreal = 1.5x\n",
      "x");
  CHECK_THROWS_WITH(ini.find_integer("a", "none"), "x: [a] none: 'None' is not an integer");
  for (const char* key : {"big", "mixed", "octal"}) {
    CAPTURE(key);
    CHECK_THROWS_AS(ini.find_integer("a", key), Error);
  }
  CHECK_THROWS_AS(ini.find_real("a", "real"), Error);
}

TEST_CASE("ini: lines longer than INIReader's buffer stay whole") {
  const Ini ini = Ini::parse("[a]\nmodel_dir = " + std::string(5000, 'd') + "\n", "x");
  CHECK(ini.get("a", "model_dir").size() == 5000);
}

TEST_CASE("ini: the largest hostile file costs little memory") {
  std::string text;
  for (int i = 0; text.size() < 1 << 20; ++i) text += "[" + std::to_string(i) + "]\n";
  const test::Cost sections = test::measure([&] { Ini::parse(text, "x"); });
  text = "[a]\nk = v\n";
  while (text.size() < 1 << 20) text += " v\n";
  const test::Cost lines = test::measure([&] { Ini::parse(text, "x"); });
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  CHECK(sections.peak_growth_bytes < int64_t{64} << 20);
  CHECK(lines.peak_growth_bytes < int64_t{64} << 20);
#endif
}

TEST_CASE("ini: refuses each bad file naming the line") {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(test::golden("bad/ini"))) {
    CAPTURE(entry.path());
    const test::ExactBuffer buffer(test::read_bytes(entry.path()));
    try {
      Ini::parse(buffer.text(), "bad.ini");
      FAIL_CHECK("accepted");
    } catch (const Error& e) {
      CHECK(e.code() == ErrorCode::kInvalidInput);
      CHECK(std::string(e.what()).find("bad.ini: line ") == 0);
      CHECK(std::string(e.what()).find('\n') == std::string::npos);
    }
    ++count;
  }
  CHECK(count == 8);
}

TEST_CASE("ini: every prefix of a valid file is read or refused cleanly") {
  for (const char* name : {"gpt2", "quirks"}) {
    const std::string bytes = test::read_bytes(test::golden(std::string("ini/") + name + ".ini"));
    for (size_t size = 0; size < bytes.size(); ++size) {
      const test::ExactBuffer buffer(bytes.substr(0, size));
      try {
        Ini::parse(buffer.text(), "prefix");
      } catch (const Error& e) {
        CHECK(e.code() == ErrorCode::kInvalidInput);
      }
    }
  }
}

}  // namespace
}  // namespace llmctl::formats
