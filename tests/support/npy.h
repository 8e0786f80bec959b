// Reads the .npy files of goldens: F32, row-major, two axes.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace llmctl::test {

struct NpyArray {
  int64_t rows = 0, columns = 0;
  std::vector<float> values;
};

inline NpyArray read_npy(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), {});
  const auto fail = [&](const char* why) { throw std::runtime_error(path.string() + ": " + why); };
  if (bytes.size() < 10 || bytes.compare(0, 6, "\x93NUMPY") != 0) fail("not an .npy file");
  const size_t start = 10 + static_cast<unsigned char>(bytes[8]) +
                       size_t{256} * static_cast<unsigned char>(bytes[9]);
  const std::string header = bytes.substr(10, start - 10);
  if (header.find("'<f4'") == std::string::npos) fail("not F32");
  if (header.find("'fortran_order': False") == std::string::npos) fail("not row-major");
  NpyArray array;
  const size_t shape = header.find("'shape': (");
  if (shape == std::string::npos) fail("no shape");
  const size_t comma = header.find(',', shape + 10);
  array.rows = std::stoll(header.substr(shape + 10));
  array.columns = std::stoll(header.substr(comma + 1));
  array.values.resize(static_cast<size_t>(array.rows * array.columns));
  if (bytes.size() - start != array.values.size() * sizeof(float)) fail("wrong number of values");
  std::memcpy(array.values.data(), bytes.data() + start, bytes.size() - start);
  return array;
}

}  // namespace llmctl::test
