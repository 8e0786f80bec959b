// Measures how fast a tokenizer opens, encodes and decodes, and what hostile texts cost.
//
//   llmctl_bench_tokenizer TOKENIZER_DIR TEXT_FILE [SECONDS]
//
// One thread, processor time. The text is encoded as one string, then line by line.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "runtime/tokenizer/tokenizer.h"

namespace {

double cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

/// Seconds of one call, the best over a fifth of a second at least.
double best_seconds(double budget, const std::function<void()>& call) {
  double best = 1e30, spent = 0;
  do {
    const double start = cpu_seconds();
    call();
    const double took = cpu_seconds() - start;
    best = std::min(best, took);
    spent += took;
  } while (spent < budget);
  return best;
}

void report(const std::string& name, size_t bytes, double seconds) {
  std::printf("%-34s %9.2f MB/s  %8.1f ms\n", name.c_str(),
              static_cast<double>(bytes) / seconds / 1e6, seconds * 1e3);
}

std::string repeat(const std::string& unit, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += unit;
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: llmctl_bench_tokenizer TOKENIZER_DIR TEXT_FILE [SECONDS]\n");
    return 2;
  }
  try {
    const double budget = argc > 3 ? std::atof(argv[3]) : 1.0;
    std::stringstream buffer;
    buffer << std::ifstream(argv[2]).rdbuf();
    const std::string text = buffer.str();
    std::vector<std::string> lines;
    for (std::string line; std::getline(buffer, line);) lines.push_back(line);

    double start = cpu_seconds();
    const auto tokenizer = llmctl::runtime::open_tokenizer(argv[1]);
    if (!tokenizer) {
      std::fprintf(stderr, "%s holds no tokenizer\n", argv[1]);
      return 3;
    }
    std::printf("%-34s %28.1f ms\n", "open", (cpu_seconds() - start) * 1e3);

    size_t tokens = 0;
    report("encode, one text", text.size(),
           best_seconds(budget, [&] { tokens = tokenizer->encode(text, false).size(); }));
    std::printf("%-34s %9.2f bytes\n", "a token is",
                static_cast<double>(text.size()) / static_cast<double>(tokens));
    report("encode, line by line", text.size(), best_seconds(budget, [&] {
             for (const std::string& line : lines) tokenizer->encode(line, true);
           }));
    const std::vector<int32_t> ids = tokenizer->encode(text, false);
    report("decode", text.size(), best_seconds(budget, [&] { tokenizer->decode(ids, true); }));

    constexpr size_t kHostile = 1 << 20;
    // Combining marks in descending order of class make naive canonical ordering quadratic.
    const std::string marks =
        "a" + repeat("\xCC\x80", kHostile / 2) + repeat("\xCC\xA3", kHostile / 2);
    for (const auto& [name, hostile] : std::vector<std::pair<std::string, std::string>>{
             {"1 MB: a", repeat("a", kHostile)},
             {"1 MB: ab", repeat("ab", kHostile)},
             {"1 MB: the (no blank)", repeat("the", kHostile)},
             {"1 MB: blanks", repeat(" ", kHostile)},
             {"1 MB: blanks, then a letter", repeat(" ", kHostile) + "a"},
             {"1 MB: line feeds", repeat("\n", kHostile)},
             {"1 MB: digits", repeat("1234567890", kHostile)},
             {"1 MB: points", repeat(".", kHostile)},
             {"1 MB: '<|'", repeat("<|", kHostile)},
             {"1 MB: Chinese", repeat("\xE4\xB8\xAD\xE6\x96\x87", kHostile)},
             {"1 MB: emoji", repeat("\xF0\x9F\x98\x80", kHostile)},
             {"1 MB: combining marks", marks},
             {"1 MB: NUL", std::string(kHostile, '\0')},
             {"1 MB: invalid bytes", repeat("\xFF\xC3", kHostile)}}) {
      try {
        start = cpu_seconds();
        const auto hostile_ids = tokenizer->encode(hostile, false);
        report(name, hostile.size(), cpu_seconds() - start);
        start = cpu_seconds();
        tokenizer->decode(hostile_ids, false);
        const double took = cpu_seconds() - start;
        if (took > 0.5) report(name + ", decode", hostile.size(), took);
      } catch (const std::exception& error) {
        std::printf("%-34s refused: %s\n", name.c_str(), error.what());
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
