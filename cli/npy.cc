#include "cli/npy.h"

#include <unistd.h>

#include <bit>
#include <string>
#include <system_error>

#include "formats/core/error.h"

namespace llmctl::cli {
namespace {

static_assert(std::endian::native == std::endian::little, "values are written as they lie");

std::string header(int64_t num_rows, int64_t num_columns) {
  std::string dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (" +
                     std::to_string(num_rows) + ", " + std::to_string(num_columns) + "), }";
  const size_t prefix = 10;  // magic, version, length
  dict.append((64 - (prefix + dict.size() + 1) % 64) % 64, ' ');
  dict.push_back('\n');
  std::string text("\x93NUMPY\x01\x00", 8);
  text.push_back(static_cast<char>(dict.size() & 0xFF));
  text.push_back(static_cast<char>(dict.size() >> 8));
  return text + dict;
}

}  // namespace

NpyWriter::NpyWriter(std::filesystem::path path, int64_t num_rows, int64_t num_columns)
    : path_(std::move(path)) {
  working_ = path_.parent_path() /
             ("." + path_.filename().string() + "." + std::to_string(::getpid()) + ".tmp");
  try {
    file_.emplace(File::create(working_));
  } catch (const Error& error) {
    // The user knows of the file that was asked for, not of the one beside it.
    const bool has_directory = std::filesystem::is_directory(
        path_.has_parent_path() ? path_.parent_path() : std::filesystem::path("."));
    throw Error(error.code(), has_directory ? error.message() : "its directory does not exist",
                path_.string(), has_directory ? error.hint() : "make it, or name another file");
  }
  const std::string text = header(num_rows, num_columns);
  file_->write_at(std::as_bytes(std::span(text)), 0);
  offset_ = text.size();
  expected_ = offset_ +
              static_cast<uint64_t>(num_rows) * static_cast<uint64_t>(num_columns) * sizeof(float);
}

NpyWriter::~NpyWriter() {
  if (working_.empty()) return;
  std::error_code ignored;
  std::filesystem::remove(working_, ignored);
}

void NpyWriter::append(std::span<const float> values) {
  file_->write_at(std::as_bytes(values), offset_);
  offset_ += values.size_bytes();
}

void NpyWriter::commit() {
  if (offset_ != expected_) throw Error(ErrorCode::kInternal, "rows are missing", path_.string());
  file_->sync();
  file_.reset();
  std::error_code error;
  std::filesystem::rename(working_, path_, error);
  if (error) {
    throw Error(ErrorCode::kEnvironment, "cannot be put in place: " + error.message(),
                path_.string());
  }
  working_.clear();
}

}  // namespace llmctl::cli
