#include <algorithm>
#include <optional>
#include <span>
#include <vector>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "runtime/tokenizer/sentencepiece_proto.h"
#include "runtime/tokenizer/sources.h"
#include "runtime/tokenizer/tokenizer.h"

namespace llmctl::runtime {

namespace {

constexpr const char* kTokenizerJsonHint =
    "put a tokenizer.json beside it (transformers: AutoTokenizer.from_pretrained(DIR)"
    ".save_pretrained(DIR))";

bool has_file(const std::filesystem::path& path) {
  std::error_code ec;
  return std::filesystem::exists(path, ec);
}

/// The one *.tiktoken in `directory`; nothing when there is none.
std::optional<std::filesystem::path> find_tiktoken(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> found;
  std::error_code ec;
  for (const auto& entry : std::filesystem::directory_iterator(directory, ec)) {
    if (entry.path().extension() == ".tiktoken") found.push_back(entry.path());
  }
  if (found.empty()) return std::nullopt;
  if (found.size() > 1) {
    std::sort(found.begin(), found.end());
    throw_invalid(directory.string(),
                  "several tiktoken vocabularies, among them " + found[0].filename().string() +
                      " and " + found[1].filename().string(),
                  "keep the model's own");
  }
  return found.front();
}

/// Is tokenizer.model a list of ranks, as Llama 3 and GLM-4 name theirs too?
bool is_tiktoken(const std::filesystem::path& path) {
  const File file = File::open_read(path);
  std::string head(static_cast<size_t>(std::min<uint64_t>(file.size_bytes(), 4096)), '\0');
  file.read_at(std::as_writable_bytes(std::span(head)), 0);
  return tokenizer::looks_like_tiktoken(head);
}

/// Tokenizer files that llmctl knows by name but does not read.
void refuse_known_others(const std::filesystem::path& directory) {
  for (const char* name : {"spiece.model", "sentencepiece.bpe.model"}) {
    if (has_file(directory / name)) {
      throw_invalid((directory / name).string(),
                    "this family's SentencePiece ids are not the file's own", kTokenizerJsonHint);
    }
  }
}

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer(const std::filesystem::path& directory) {
  const auto config = [&] { return tokenizer::read_tokenizer_config(directory); };
  if (has_file(directory / "tokenizer.json")) {
    return tokenizer::open_tokenizer_json(directory / "tokenizer.json", config());
  }
  if (const std::filesystem::path model = directory / "tokenizer.model"; has_file(model)) {
    return is_tiktoken(model) ? tokenizer::open_tiktoken(model, config())
                              : tokenizer::open_sentencepiece(model, config());
  }
  if (has_file(directory / "vocab.json") && has_file(directory / "merges.txt")) {
    return tokenizer::open_vocab_merges(directory / "vocab.json", directory / "merges.txt",
                                        config());
  }
  if (const auto ranks = find_tiktoken(directory)) {
    return tokenizer::open_tiktoken(*ranks, config());
  }
  if (const std::filesystem::path model = directory / "ice_text.model"; has_file(model)) {
    return tokenizer::open_chatglm(model, config());
  }
  refuse_known_others(directory);
  return nullptr;
}

}  // namespace llmctl::runtime
