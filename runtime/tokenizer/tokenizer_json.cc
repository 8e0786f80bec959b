#include <algorithm>
#include <array>
#include <unordered_set>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "runtime/tokenizer/pipeline.h"
#include "runtime/tokenizer/sources.h"
#include "runtime/tokenizer/unigram.h"
#include "runtime/tokenizer/vocabulary_json.h"

namespace llmctl::runtime::tokenizer {

namespace {

std::unique_ptr<Model> read_bpe(const Component& model, VocabularyJson& file, bool long_pieces) {
  if (!file.scores.empty()) model.refuse("a BPE vocabulary must be an object, token -> id");
  if (model.has("dropout") && model.json().at("dropout") != 0.0) {
    model.refuse("'dropout' makes ids random", "set it to null: it is for training only");
  }
  BpeOptions options;
  if (model.has("unk_token")) options.unk_token = model.text("unk_token");
  options.continuing_subword_prefix = model.text_or("continuing_subword_prefix", "");
  options.end_of_word_suffix = model.text_or("end_of_word_suffix", "");
  options.fuse_unk = model.flag("fuse_unk", false);
  options.byte_fallback = model.flag("byte_fallback", false);
  options.ignore_merges = model.flag("ignore_merges", false);
  options.long_pieces = long_pieces;
  return std::make_unique<Bpe>(Vocabulary(std::move(file.tokens), model.where()), file.merges,
                               std::move(options), model.where());
}

std::unique_ptr<Model> read_unigram(const Component& model, const VocabularyJson& file) {
  if (!file.tokens.empty()) model.refuse("a Unigram vocabulary must be a list of [token, score]");
  std::optional<int32_t> unk_id;
  if (model.has("unk_id")) {
    const int64_t id = model.size("unk_id");
    if (id >= static_cast<int64_t>(file.scores.size())) {
      model.refuse("unk_id " + std::to_string(id) + " is beyond the " +
                   std::to_string(file.scores.size()) + " pieces");
    }
    unk_id = static_cast<int32_t>(id);
  }
  return std::make_unique<Unigram>(file.scores, unk_id, model.flag("byte_fallback", false),
                                   model.where());
}

std::unique_ptr<Model> read_model(const Component& model, VocabularyJson& file, bool long_pieces) {
  // Files from before the type was written are BPE if they have merges.
  const std::string type = model.text_or("type", model.json().contains("merges") ? "BPE" : "");
  if (type == "BPE") return read_bpe(model, file, long_pieces);
  if (type == "Unigram") return read_unigram(model, file);
  if (type.empty()) model.refuse("'type' is missing");
  model.refuse_type("model");
}

/// The classes of transformers that put BOS and EOS around a text themselves when
/// tokenizer_config.json says so, whatever the post-processor in tokenizer.json is.
constexpr std::array<std::string_view, 3> kClassesWithFrameFlags = {
    "LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"};

void override_frame(const TokenizerConfig& config, PipelineTokenizer& tokenizer) {
  if (!config.add_bos_token && !config.add_eos_token) return;
  if (std::find(kClassesWithFrameFlags.begin(), kClassesWithFrameFlags.end(),
                config.tokenizer_class) == kClassesWithFrameFlags.end()) {
    return;
  }
  const bool gemma = config.tokenizer_class == "GemmaTokenizer";
  const auto id_of = [&](const std::string& role, const char* fallback) {
    const std::string* content = config.find_role(role);
    const std::string token = content != nullptr ? *content : fallback;
    const auto id = tokenizer.find_token(token);
    if (!id) {
      throw_invalid((config.directory / "tokenizer_config.json").string(),
                    role + " '" + printable(token, 60) + "' is not in the vocabulary");
    }
    return *id;
  };
  Frame frame;
  if (config.add_bos_token.value_or(true)) {
    frame.prefix = {id_of("bos_token", gemma ? "<bos>" : "<s>")};
  }
  if (config.add_eos_token.value_or(false)) {
    frame.suffix = {id_of("eos_token", gemma ? "<eos>" : "</s>")};
  }
  tokenizer.set_frame(std::move(frame));
}

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer_json(const std::filesystem::path& path,
                                               const TokenizerConfig& config) {
  const std::string where = path.string();
  VocabularyJson file = parse_tokenizer_json(read_text_file(path, kMaxTokenizerBytes), where);
  const Component root(file.rest, where);
  PipelineParts parts;
  if (root.has("added_tokens")) {
    for (const Component& token : root.children("added_tokens")) {
      parts.added_tokens.push_back(read_added_token(token, token.size("id")));
    }
  }
  std::unordered_set<std::string> contents;
  for (const AddedToken& token : parts.added_tokens) contents.insert(token.content);
  for (const AddedToken& token : config.added_tokens) {
    if (contents.insert(token.content).second) parts.added_tokens.push_back(token);
  }
  if (root.has("normalizer")) parts.normalizer = read_normalizer(root.child("normalizer"));
  if (root.has("pre_tokenizer")) {
    parts.pre_tokenizer = read_pre_tokenizer(root.child("pre_tokenizer"));
  }
  // These leave words together: a split on blanks finds none where the normalizer replaced them.
  const bool long_pieces = !parts.pre_tokenizer ||
                           root.child("pre_tokenizer").type() == "Metaspace" ||
                           root.child("pre_tokenizer").type() == "Split";
  parts.model = read_model(root.child("model"), file, long_pieces);
  if (root.has("post_processor")) {
    parts.frame = read_post_processor(root.child("post_processor"));
  }
  if (root.has("decoder")) parts.decoder = read_decoder(root.child("decoder"));
  auto tokenizer = std::make_unique<PipelineTokenizer>(std::move(parts), where);
  override_frame(config, *tokenizer);
  return tokenizer;
}

}  // namespace llmctl::runtime::tokenizer
