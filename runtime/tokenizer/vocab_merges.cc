#include <array>
#include <set>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "runtime/tokenizer/pipeline.h"
#include "runtime/tokenizer/sources.h"
#include "runtime/tokenizer/vocabulary_json.h"

namespace llmctl::runtime::tokenizer {

namespace {

/// How a class of transformers builds its pipeline from vocab.json and merges.txt
/// (convert_slow_tokenizer.py). The components are spelled as tokenizer.json would spell them.
struct Gpt2Class {
  std::string_view tokenizer_class;
  std::string_view model_type;
  bool add_bos_token;  ///< when tokenizer_config.json does not say
  const char* normalizer;
  const char* pre_tokenizer;  ///< null: ByteLevel with its own regular expression
};

constexpr const char* kQwen2PreTokenizer = R"json({"type": "Sequence", "pretokenizers": [
  {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex":
   "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
  {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})json";
constexpr const char* kNfc = R"({"type": "NFC"})";

constexpr std::array kClasses = {
    Gpt2Class{"GPT2Tokenizer", "gpt2", false, nullptr, nullptr},
    Gpt2Class{"GPT2Tokenizer", "opt", true, nullptr, nullptr},
    Gpt2Class{"GPT2Tokenizer", "gptj", false, nullptr, nullptr},
    Gpt2Class{"GPT2Tokenizer", "gpt_neo", false, nullptr, nullptr},
    Gpt2Class{"CodeGenTokenizer", "codegen", false, nullptr, nullptr},
    Gpt2Class{"GPTNeoXTokenizer", "gpt_neox", false, kNfc, nullptr},
    Gpt2Class{"Qwen2Tokenizer", "qwen2", false, kNfc, kQwen2PreTokenizer},
    Gpt2Class{"Qwen2Tokenizer", "qwen2_moe", false, kNfc, kQwen2PreTokenizer},
    Gpt2Class{"Qwen2Tokenizer", "qwen3", false, kNfc, kQwen2PreTokenizer},
};

const Gpt2Class& choose_class(const TokenizerConfig& config) {
  const Gpt2Class* by_class = nullptr;
  for (const Gpt2Class& entry : kClasses) {
    const bool class_fits =
        config.tokenizer_class.empty() || config.tokenizer_class == entry.tokenizer_class;
    if (class_fits && config.model_type == entry.model_type) return entry;
    if (config.tokenizer_class == entry.tokenizer_class && by_class == nullptr) by_class = &entry;
  }
  if (by_class != nullptr) return *by_class;
  if (config.tokenizer_class.empty() && config.model_type.empty()) return kClasses.front();
  const std::string name = config.tokenizer_class.empty()
                               ? "model_type '" + printable(config.model_type, 60) + "'"
                               : "tokenizer class '" + printable(config.tokenizer_class, 60) + "'";
  throw_invalid(config.directory.string(),
                "vocab.json and merges.txt of " + name + " are not supported",
                "add the model's tokenizer.json, which says how text is cut");
}

Merges parse_merges(const std::string& text, const std::string& where) {
  Merges merges;
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find('\n', begin);
    if (end == std::string::npos) end = text.size();
    std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with("#version")) continue;
    const size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
      throw_invalid(where, "line " + std::to_string(number) + ": '" +
                               printable(std::string(line), 60) +
                               "' is not two tokens with one space between");
    }
    merges.emplace_back(line.substr(0, space), line.substr(space + 1));
  }
  return merges;
}

/// The tokens found in text as wholes: those listed with an id, and those that play a role.
std::vector<AddedToken> special_tokens(const TokenizerConfig& config,
                                       const Vocabulary& vocabulary) {
  std::vector<AddedToken> tokens = config.added_tokens;
  std::set<std::string> seen;
  for (const AddedToken& token : tokens) seen.insert(token.content);
  const auto add = [&](const std::string& content) {
    const auto id = vocabulary.find(content);
    if (!id || !seen.insert(content).second) return;
    AddedToken token;
    token.id = *id;
    token.content = content;
    token.normalized = false;
    token.special = true;
    tokens.push_back(token);
  };
  for (const auto& [role, content] : config.roles) add(content);
  // GPT-2's own files name no special token; its class has this one for each role left open.
  for (const char* role : {"bos_token", "eos_token", "unk_token"}) {
    if (config.find_role(role) == nullptr) add("<|endoftext|>");
  }
  return tokens;
}

int32_t find_bos(const TokenizerConfig& config, const PipelineTokenizer& tokenizer) {
  const std::string* content = config.find_role("bos_token");
  const std::optional<int32_t> id = content != nullptr ? tokenizer.find_token(*content)
                                    : config.bos_token_id.has_value()
                                        ? config.bos_token_id
                                        : tokenizer.find_token("<|endoftext|>");
  if (!id || !tokenizer.find_spelling(*id)) {
    throw_invalid(config.directory.string(),
                  "texts begin with bos_token, but no file says which token that is",
                  "add \"bos_token\" to tokenizer_config.json");
  }
  return *id;
}

}  // namespace

std::unique_ptr<Tokenizer> open_vocab_merges(const std::filesystem::path& vocab,
                                             const std::filesystem::path& merges,
                                             const TokenizerConfig& config) {
  const Gpt2Class& kind = choose_class(config);
  const std::string where = vocab.string();
  Vocabulary vocabulary(parse_vocab_json(read_text_file(vocab, kMaxTokenizerBytes), where), where);
  PipelineParts parts;
  parts.added_tokens = special_tokens(config, vocabulary);
  if (kind.normalizer != nullptr) {
    const Json json = Json::parse(kind.normalizer);
    parts.normalizer = read_normalizer(Component(json, where));
  }
  Json pre_tokenizer = {{"type", "ByteLevel"},
                        {"add_prefix_space", config.add_prefix_space.value_or(false)}};
  if (kind.pre_tokenizer != nullptr) pre_tokenizer = Json::parse(kind.pre_tokenizer);
  parts.pre_tokenizer = read_pre_tokenizer(Component(pre_tokenizer, where));
  parts.model = std::make_unique<Bpe>(
      std::move(vocabulary),
      parse_merges(read_text_file(merges, kMaxTokenizerBytes), merges.string()), BpeOptions{},
      merges.string());
  const Json decoder = {{"type", "ByteLevel"}};
  parts.decoder = read_decoder(Component(decoder, where));
  auto tokenizer = std::make_unique<PipelineTokenizer>(std::move(parts), where);
  if (config.add_bos_token.value_or(kind.add_bos_token)) {
    tokenizer->set_frame({{find_bos(config, *tokenizer)}, {}});
  }
  return tokenizer;
}

}  // namespace llmctl::runtime::tokenizer
