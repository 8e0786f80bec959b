// Sizes, suggestions and the progress line: the words that every verb shares.
#include <doctest/doctest.h>

#include <array>
#include <string>

#include "cli/exit_code.h"
#include "cli/progress.h"
#include "cli/size.h"
#include "cli/suggest.h"

namespace llmctl::cli {

TEST_CASE("size: reads decimal and binary units") {
  CHECK(parse_size("1048576") == 1048576u);
  CHECK(parse_size("5GB") == 5'000'000'000u);
  CHECK(parse_size("5gb") == 5'000'000'000u);
  CHECK(parse_size("4GiB") == uint64_t{4} << 30);
  CHECK(parse_size("1.5k") == 1500u);
  CHECK(parse_size("16B") == 16u);
}

TEST_CASE("size: refuses what is no size") {
  for (const char* text : {"", "GB", "-5GB", "5 GB", "5GBB", "5XB", "nan", "inf", "1e400",
                           "9999999PB", "5iB", "0x10"}) {
    CAPTURE(text);
    CHECK_FALSE(parse_size(text).has_value());
  }
}

TEST_CASE("size: prints three significant digits and steps up before it rounds to a thousand") {
  CHECK(format_size(0) == "0 B");
  CHECK(format_size(999) == "999 B");
  CHECK(format_size(1210) == "1.21 kB");
  CHECK(format_size(12'340'000) == "12.3 MB");
  CHECK(format_size(999'600) == "1.00 MB");
  CHECK(format_size(99'960'000) == "100 MB");
  CHECK(format_count(82) == "82");
  CHECK(format_count(6'738'000'000) == "6.74 B");
}

TEST_CASE("size: prints durations rounded up to whole seconds") {
  CHECK(format_duration(0) == "0:00");
  CHECK(format_duration(6.2) == "0:07");
  CHECK(format_duration(754) == "12:34");
  CHECK(format_duration(3723) == "1:02:03");
}

TEST_CASE("suggest: finds the nearest name and stays silent when none is near") {
  const std::array<std::string, 3> names = {"inspect", "convert", "diff"};
  CHECK(closest_name("convrt", names) == "convert");
  CHECK(closest_name("covnert", names) == "convert");
  CHECK(closest_name("dif", names) == "diff");
  CHECK_FALSE(closest_name("serve", names).has_value());
  CHECK_FALSE(closest_name("", names).has_value());
}

TEST_CASE("progress: a JSON line has rate and rest and no rest before the first byte") {
  CHECK(
      progress_json("x", 500, 2000, 2.0) ==
      R"({"progress":"x","bytes_done":500,"bytes_total":2000,"bytes_per_second":250,"eta_seconds":6.0})");
  CHECK(
      progress_json("x", 0, 2000, 2.0) ==
      R"({"progress":"x","bytes_done":0,"bytes_total":2000,"bytes_per_second":0,"eta_seconds":null})");
}

TEST_CASE("progress: says share and sizes and after half a second speed and rest") {
  CHECK(progress_line("converting", 0, 2'000'000'000, 0.1) == "converting   0%  0 B of 2.00 GB");
  CHECK(progress_line("converting", 500'000'000, 2'000'000'000, 1.0) ==
        "converting  25%  500 MB of 2.00 GB  500 MB/s  0:03 left");
  CHECK(progress_line("x", 5, 0, 1.0) == "x 100%  0 B of 0 B");
}

TEST_CASE("exit code: every class of error has its own") {
  CHECK(exit_status(exit_code(ErrorCode::kUsage)) == 2);
  CHECK(exit_status(exit_code(ErrorCode::kInvalidInput)) == 3);
  CHECK(exit_status(exit_code(ErrorCode::kEnvironment)) == 4);
  CHECK(exit_status(exit_code(ErrorCode::kInternal)) == 5);
  CHECK(exit_status(exit_code(ErrorCode::kInterrupted)) == 130);
}

}  // namespace llmctl::cli
