// Where a SentencePiece model puts the ids that it finds.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace llmctl::runtime::tokenizer {

/// Writes what no piece covers as its bytes where the model has byte pieces; else a run of it is
/// one unknown piece (sentencepiece_processor.cc, PopulateSentencePieceText).
class SentencePieceSink {
 public:
  /// `byte_ids` is null for a model without byte pieces.
  SentencePieceSink(std::vector<int32_t>& ids, int32_t unk_id,
                    const std::array<int32_t, 256>* byte_ids)
      : ids_(ids), unk_id_(unk_id), byte_ids_(byte_ids) {}

  /// The next piece: its id, or the unknown piece's, and the text that it covers.
  void push(int32_t id, std::string_view text) {
    const bool unknown = id == unk_id_;
    if (unknown && byte_ids_ != nullptr) {
      for (const char c : text) ids_.push_back((*byte_ids_)[static_cast<uint8_t>(c)]);
    } else if (!unknown || !behind_unknown_) {
      ids_.push_back(id);
    }
    behind_unknown_ = unknown;
  }

 private:
  std::vector<int32_t>& ids_;
  int32_t unk_id_;
  const std::array<int32_t, 256>* byte_ids_;
  bool behind_unknown_ = false;
};

}  // namespace llmctl::runtime::tokenizer
