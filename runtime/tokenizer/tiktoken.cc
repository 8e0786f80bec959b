#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <set>
#include <span>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "runtime/tokenizer/base64.h"
#include "runtime/tokenizer/bpe.h"
#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/pipeline.h"
#include "runtime/tokenizer/sentencepiece_proto.h"
#include "runtime/tokenizer/sources.h"

namespace llmctl::runtime::tokenizer {

namespace {

/// A file of ranks says neither how text is cut nor which special tokens there are: both stand in
/// the code of each model. The special tokens follow one another from `first_special`;
/// "<|extra_{0..204}|>" stands for 205 of them.
struct TiktokenFamily {
  std::string_view name;
  std::string_view own_class;  ///< of tokenizer_config.json; no other model's has this name
  std::array<std::string_view, 3> shared_classes;
  std::array<std::string_view, 2> model_types;
  int32_t first_special;  ///< as many ranks has the published file
  bool nfc;
  const char* pattern;
  std::span<const std::string_view> specials;
  std::span<const std::string_view> prefix;  ///< special tokens in front of every text
};

constexpr const char* kQwenPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Qwen/Qwen-7B tokenization_qwen.py.
constexpr std::array<std::string_view, 4> kQwenSpecials = {"<|endoftext|>", "<|im_start|>",
                                                           "<|im_end|>", "<|extra_{0..204}|>"};
// meta-llama/llama3 llama/tokenizer.py.
constexpr std::array<std::string_view, 8> kLlama3Specials = {"<|begin_of_text|>",
                                                             "<|end_of_text|>",
                                                             "<|reserved_special_token_{0..3}|>",
                                                             "<|start_header_id|>",
                                                             "<|end_header_id|>",
                                                             "<|reserved_special_token_4|>",
                                                             "<|eot_id|>",
                                                             "<|reserved_special_token_{5..250}|>"};
constexpr std::array<std::string_view, 1> kLlama3Prefix = {"<|begin_of_text|>"};
// THUDM/glm-4-9b tokenization_chatglm.py and tokenizer_config.json.
constexpr std::array<std::string_view, 14> kGlm4Specials = {"<|endoftext|>",
                                                            "[MASK]",
                                                            "[gMASK]",
                                                            "[sMASK]",
                                                            "<sop>",
                                                            "<eop>",
                                                            "<|system|>",
                                                            "<|user|>",
                                                            "<|assistant|>",
                                                            "<|observation|>",
                                                            "<|begin_of_image|>",
                                                            "<|end_of_image|>",
                                                            "<|begin_of_video|>",
                                                            "<|end_of_video|>"};
constexpr std::array<std::string_view, 2> kGlm4Prefix = {"[gMASK]", "<sop>"};

constexpr std::array kFamilies = {
    TiktokenFamily{
        "Qwen", "QWenTokenizer", {}, {"qwen"}, 151643, true, kQwenPattern, kQwenSpecials, {}},
    TiktokenFamily{"Llama 3",
                   "",
                   {"PreTrainedTokenizer", "LlamaTokenizer", "TokenizersBackend"},
                   {"llama"},
                   128000,
                   false,
                   kLlama3Pattern,
                   kLlama3Specials,
                   kLlama3Prefix},
    TiktokenFamily{"GLM-4",
                   "ChatGLM4Tokenizer",
                   {"ChatGLMTokenizer"},
                   {"chatglm"},
                   151329,
                   false,
                   kLlama3Pattern,
                   kGlm4Specials,
                   kGlm4Prefix},
};

using Ranks = std::vector<std::pair<std::string, int32_t>>;

/// The lines "base64 rank".
Ranks parse_ranks(const std::string& text, const std::string& where) {
  Ranks ranks;
  std::set<int32_t> seen;
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const size_t space = std::min(line.find(' '), line.size());
    const std::string_view digits = line.substr(std::min(space + 1, line.size()));
    std::optional<std::string> bytes = decode_base64(line.substr(0, space));
    int32_t rank = -1;
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
    if (!bytes || bytes->empty() || error != std::errc() || stop != digits.data() + digits.size() ||
        rank < 0) {
      throw_invalid(where, "line " + std::to_string(number) + ": '" +
                               printable(std::string(line), 60) +
                               "' is not a token in base64, a space and its rank");
    }
    ranks.emplace_back(std::move(*bytes), rank);
  }
  return ranks;
}

bool names(std::span<const std::string_view> list, std::string_view name) {
  return !name.empty() && std::find(list.begin(), list.end(), name) != list.end();
}

const TiktokenFamily& choose_family(const TokenizerConfig& config, size_t count,
                                    const std::string& where) {
  const bool told = !config.tokenizer_class.empty() || !config.model_type.empty();
  for (const TiktokenFamily& family : kFamilies) {
    const size_t published = static_cast<size_t>(family.first_special);
    if (count <= published && names({&family.own_class, 1}, config.tokenizer_class)) return family;
    // A shared name is believed only of a file that has as many ranks as the published one.
    if (count == published && (!told || names(family.model_types, config.model_type) ||
                               names(family.shared_classes, config.tokenizer_class))) {
      return family;
    }
  }
  std::string known;
  for (const TiktokenFamily& family : kFamilies) {
    known += (known.empty() ? "" : ", ") + std::string(family.name) + " (" +
             std::to_string(family.first_special) + " ranks)";
  }
  throw_invalid(where,
                "a tiktoken vocabulary of " + std::to_string(count) + " ranks, tokenizer class '" +
                    printable(config.tokenizer_class, 60) + "', model_type '" +
                    printable(config.model_type, 60) +
                    "': how its texts are cut is not known; known are " + known,
                "put the model's tokenizer.json beside it (transformers: "
                "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR))");
}

/// "<|extra_{0..204}|>" as its members; any other spelling is itself.
std::vector<std::string> expand(std::string_view spelling) {
  const size_t open = spelling.find('{');
  if (open == std::string_view::npos) return {std::string(spelling)};
  const size_t dots = spelling.find("..", open), close = spelling.find('}', open);
  int first = 0, last = -1;
  std::from_chars(spelling.data() + open + 1, spelling.data() + dots, first);
  std::from_chars(spelling.data() + dots + 2, spelling.data() + close, last);
  std::vector<std::string> out;
  for (int i = first; i <= last; ++i) {
    out.push_back(std::string(spelling.substr(0, open)) + std::to_string(i) +
                  std::string(spelling.substr(close + 1)));
  }
  return out;
}

/// The family's tokens, except where a file beside the ranks gives an id or a spelling to another
/// (Llama 3.1 has named some that were reserved).
std::vector<AddedToken> special_tokens(const TiktokenFamily& family,
                                       const TokenizerConfig& config) {
  std::vector<AddedToken> tokens = config.added_tokens;
  std::set<int32_t> ids;
  std::set<std::string> contents;
  for (AddedToken& token : tokens) {
    ids.insert(token.id);
    contents.insert(token.content);
    token.normalized = family.nfc;
  }
  int32_t id = family.first_special;
  for (const std::string_view spelling : family.specials) {
    for (const std::string& content : expand(spelling)) {
      AddedToken token;
      token.id = id++;
      token.content = content;
      token.special = true;
      // Qwen normalises the whole text first, then looks for tokens.
      token.normalized = family.nfc;
      if (!ids.contains(token.id) && !contents.contains(content)) tokens.push_back(token);
    }
  }
  return tokens;
}

/// tiktoken merges the neighbours whose concatenation has the lowest rank. So every cut of a token
/// into two tokens is a merge, with the token's own rank.
Merges all_cuts(const Ranks& ranks, const Vocabulary& vocabulary,
                const std::vector<std::string>& spellings) {
  std::vector<size_t> order(ranks.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return ranks[a].second < ranks[b].second; });
  Merges merges;
  for (const size_t i : order) {
    const std::string_view spelling = spellings[i];
    for (size_t cut = 1; cut < spelling.size(); ++cut) {
      // Between characters of the byte alphabet only.
      if ((static_cast<uint8_t>(spelling[cut]) & 0xC0) == 0x80) continue;
      const std::string_view left = spelling.substr(0, cut), right = spelling.substr(cut);
      if (vocabulary.find(left) && vocabulary.find(right)) merges.emplace_back(left, right);
    }
  }
  return merges;
}

}  // namespace

std::unique_ptr<Tokenizer> open_tiktoken(const std::filesystem::path& path,
                                         const TokenizerConfig& config) {
  const std::string where = path.string();
  const Ranks ranks = parse_ranks(read_text_file(path, kMaxTokenizerBytes), where);
  const TiktokenFamily& family = choose_family(config, ranks.size(), where);

  std::vector<std::string> spellings(ranks.size());
  std::vector<std::pair<std::string, int64_t>> tokens;
  tokens.reserve(ranks.size());
  for (size_t i = 0; i < ranks.size(); ++i) {
    append_byte_level(ranks[i].first, spellings[i]);
    tokens.emplace_back(spellings[i], ranks[i].second);
  }
  Vocabulary vocabulary(std::move(tokens), where);
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::string spelling;
    const char c = static_cast<char>(byte);
    append_byte_level({&c, 1}, spelling);
    if (!vocabulary.find(spelling)) {
      throw_invalid(where, "the byte " + std::to_string(byte) + " has no rank; all 256 must");
    }
  }
  PipelineParts parts;
  parts.added_tokens = special_tokens(family, config);
  const auto component = [&](const Json& json, auto read) { return read(Component(json, where)); };
  if (family.nfc) parts.normalizer = component({{"type", "NFC"}}, read_normalizer);
  const Json split = {
      {"type", "Split"}, {"behavior", "Isolated"}, {"pattern", {{"Regex", family.pattern}}}};
  const Json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const Json sequence = {{"type", "Sequence"}, {"pretokenizers", Json::array({split, bytes})}};
  parts.pre_tokenizer = component(sequence, read_pre_tokenizer);
  const Merges merges = all_cuts(ranks, vocabulary, spellings);
  BpeOptions options;
  options.ignore_merges = true;
  parts.model = std::make_unique<Bpe>(std::move(vocabulary), merges, options, where);
  parts.decoder = component({{"type", "ByteLevel"}}, read_decoder);
  auto tokenizer = std::make_unique<PipelineTokenizer>(std::move(parts), where);
  Frame frame;
  for (const std::string_view token : family.prefix) {
    const auto id = tokenizer->find_token(token);
    if (!id) throw_invalid(where, "no token is '" + std::string(token) + "'");
    frame.prefix.push_back(*id);
  }
  tokenizer->set_frame(std::move(frame));
  return tokenizer;
}

}  // namespace llmctl::runtime::tokenizer
