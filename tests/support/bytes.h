// Whole files as bytes, and what a call costs: for tests only.
#pragma once

#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <span>
#include <string>

namespace llmctl::test {

inline std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// A copy on the heap with not a byte of slack, so that the address sanitizer sees any overrun.
class ExactBuffer {
 public:
  explicit ExactBuffer(const std::string& bytes)
      : size_(bytes.size()), data_(new std::byte[bytes.size()]) {
    if (size_ > 0) std::memcpy(data_.get(), bytes.data(), size_);
  }
  std::span<const std::byte> bytes() const { return {data_.get(), size_}; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_.get()), size_}; }

 private:
  size_t size_;
  std::unique_ptr<std::byte[]> data_;
};

struct Cost {
  int64_t peak_growth_bytes = 0;  ///< of the resident set; 0 where the kernel does not tell
};

/// Runs `call` and measures it.
template <typename Call>
Cost measure(const Call& call) {
  const auto field = [](const std::string& name) -> int64_t {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
      if (line.compare(0, name.size(), name) == 0)
        return std::stoll(line.substr(name.size())) << 10;
    }
    return 0;
  };
  std::ofstream("/proc/self/clear_refs") << "5";  // the peak starts again from here
  const int64_t before = field("VmRSS:");
  call();
  return {field("VmHWM:") - before};
}

}  // namespace llmctl::test
