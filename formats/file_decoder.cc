#include "formats/file_decoder.h"

#include "formats/checkpoint.h"

namespace llmctl::formats {

TensorFile::TensorFile(const CheckpointFile& file) : decoder_(file.decoder) {
  if (!decoder_) file_.emplace(File::open_read(file.path));
}

void TensorFile::read_at(std::span<std::byte> out, uint64_t offset) const {
  if (decoder_) return decoder_->read_at(out, offset);
  file_->read_at(out, offset);
}

}  // namespace llmctl::formats
