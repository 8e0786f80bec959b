#include "formats/core/error.h"
#include "runtime/tokenizer/sources.h"
#include "runtime/tokenizer/tokenizer.h"

namespace llmctl::runtime {

namespace {

constexpr const char* kTokenizerJsonHint =
    "put a tokenizer.json beside it (transformers: AutoTokenizer.from_pretrained(DIR)"
    ".save_pretrained(DIR))";

/// Tokenizer files that llmctl knows by name but does not read.
void refuse_known_others(const std::filesystem::path& directory) {
  std::error_code ec;
  for (const auto& entry : std::filesystem::directory_iterator(directory, ec)) {
    const std::filesystem::path& path = entry.path();
    if (path.extension() == ".tiktoken") {
      throw_invalid(path.string(), "tiktoken vocabularies are not supported", kTokenizerJsonHint);
    }
    if (path.filename() == "ice_text.model") {
      throw_invalid(path.string(), "the tokenizer of ChatGLM-6B is not supported");
    }
    if (path.filename() == "spiece.model" || path.filename() == "sentencepiece.bpe.model") {
      throw_invalid(path.string(), "this family's SentencePiece ids are not the file's own",
                    kTokenizerJsonHint);
    }
  }
}

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer(const std::filesystem::path& directory) {
  const auto has = [&](const char* name) {
    std::error_code ec;
    return std::filesystem::exists(directory / name, ec);
  };
  if (has("tokenizer.json")) {
    return tokenizer::open_tokenizer_json(directory / "tokenizer.json",
                                          tokenizer::read_tokenizer_config(directory));
  }
  if (has("tokenizer.model")) {
    return tokenizer::open_sentencepiece(directory / "tokenizer.model",
                                         tokenizer::read_tokenizer_config(directory));
  }
  if (has("vocab.json") && has("merges.txt")) {
    return tokenizer::open_vocab_merges(directory / "vocab.json", directory / "merges.txt",
                                        tokenizer::read_tokenizer_config(directory));
  }
  refuse_known_others(directory);
  return nullptr;
}

}  // namespace llmctl::runtime
