// The "post_processor" of a tokenizer.json, as far as ids go: the frame around one sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/tokenizer/component.h"

namespace llmctl::runtime::tokenizer {

/// The special ids that go before and after a text.
struct Frame {
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
};

/// TemplateProcessing (its "single" form), BertProcessing, RobertaProcessing, ByteLevel (offsets
/// only), Sequence. Any other type, and a template that does not hold sequence A exactly once, is
/// refused.
Frame read_post_processor(const Component& component);

}  // namespace llmctl::runtime::tokenizer
