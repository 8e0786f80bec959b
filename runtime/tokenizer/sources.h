// One reader per kind of tokenizer file; open_tokenizer chooses among them.
#pragma once

#include <filesystem>
#include <memory>

#include "runtime/tokenizer/config.h"
#include "runtime/tokenizer/tokenizer.h"

namespace llmctl::runtime::tokenizer {

/// A tokenizer.json. Every component it names is honoured or refused; "truncation" and "padding"
/// are not applied.
std::unique_ptr<Tokenizer> open_tokenizer_json(const std::filesystem::path& path,
                                               const TokenizerConfig& config);

/// GPT-2's pair of files: token -> id, and one merge per line.
std::unique_ptr<Tokenizer> open_vocab_merges(const std::filesystem::path& vocab,
                                             const std::filesystem::path& merges,
                                             const TokenizerConfig& config);

/// A SentencePiece model. Special tokens written in a text are ordinary
/// text to it.
std::unique_ptr<Tokenizer> open_sentencepiece(const std::filesystem::path& path,
                                              const TokenizerConfig& config);

/// A tiktoken vocabulary: lines "base64 rank". Qwen, Llama 3 and GLM-4 are told by class,
/// model_type and number of ranks; any other is refused, since the file does not say how text is
/// cut.
std::unique_ptr<Tokenizer> open_tiktoken(const std::filesystem::path& path,
                                         const TokenizerConfig& config);

/// ChatGLM-6B's ice_text.model: SentencePiece with white space spelled as pieces.
std::unique_ptr<Tokenizer> open_chatglm(const std::filesystem::path& path,
                                        const TokenizerConfig& config);

/// Guards against a file that is no tokenizer at all.
inline constexpr uint64_t kMaxTokenizerBytes = uint64_t{256} << 20;

}  // namespace llmctl::runtime::tokenizer
