// SentencePiece's compiled character map, the "Precompiled" normalizer of tokenizer.json.
#pragma once

#include <memory>

#include "runtime/tokenizer/normalizer.h"

namespace llmctl::runtime::tokenizer {

/// Reads "precompiled_charsmap": base64 of a u32 size, a Darts double-array trie of that many
/// bytes, and NUL-separated replacements (sentencepiece normalizer.cc; the spm_precompiled crate).
std::unique_ptr<Normalizer> read_precompiled(const Component& component);

}  // namespace llmctl::runtime::tokenizer
