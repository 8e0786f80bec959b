// Runs a fuzz target over every file of the given folders, each also cut short and with single
// bytes changed, from buffers of exact size. Exits with 1 when there was nothing to run.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

void run(const std::string& input) {
  const std::unique_ptr<uint8_t[]> copy(new uint8_t[input.size()]);
  if (!input.empty()) std::memcpy(copy.get(), input.data(), input.size());
  LLVMFuzzerTestOneInput(copy.get(), input.size());
}

void run_file(const std::filesystem::path& path, std::mt19937& random) {
  std::ifstream in(path, std::ios::binary);
  const std::string input{std::istreambuf_iterator<char>(in), {}};
  run(input);
  for (int round = 0; round < 50 && !input.empty(); ++round) {
    run(input.substr(0, random() % input.size()));
    std::string changed = input;
    changed[random() % changed.size()] = static_cast<char>(random());
    run(changed);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::mt19937 random(1);
  int count = 0;
  for (int i = 1; i < argc; ++i) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(argv[i])) {
      if (!entry.is_regular_file()) continue;
      run_file(entry.path(), random);
      ++count;
    }
  }
  std::printf("%d files\n", count);
  return count > 0 ? 0 : 1;
}
