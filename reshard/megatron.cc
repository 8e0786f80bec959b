#include "reshard/megatron.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "formats/core/error.h"
#include "reshard/config_fields.h"

namespace llmctl::reshard {

using formats::MegatronDialect;

namespace {

constexpr TensorRule kWhole[] = {
    {"language_model.embedding.word_embeddings.weight", "embed : vocab~/tp hidden"},
    {"language_model.embedding.word_embeddings.norm.weight", "embed_norm : hidden"},
    {"language_model.embedding.word_embeddings.norm.bias", "embed_norm_b : hidden"},
    {"language_model.embedding.position_embeddings.weight", "pos : position hidden"},
    {"language_model.encoder.layers.{l}.input_layernorm.weight", "norm1 : hidden"},
    {"language_model.encoder.layers.{l}.input_layernorm.bias", "norm1b : hidden"},
    {"language_model.encoder.layers.{l}.self_attention.dense.weight", "o : hidden (heads/tp d)"},
    {"language_model.encoder.layers.{l}.self_attention.dense.bias", "ob : hidden"},
    {"language_model.encoder.layers.{l}.post_attention_layernorm.weight", "norm2 : hidden"},
    {"language_model.encoder.layers.{l}.post_attention_layernorm.bias", "norm2b : hidden"},
    {"language_model.encoder.layers.{l}.mlp.dense_4h_to_h.weight", "down : hidden ffn/tp"},
    {"language_model.encoder.layers.{l}.mlp.dense_4h_to_h.bias", "downb : hidden"},
    {"language_model.encoder.final_layernorm.weight", "final_norm : hidden"},
    {"language_model.encoder.final_layernorm.bias", "final_norm_b : hidden"},
};

constexpr TensorRule kPlainMlp[] = {
    {"language_model.encoder.layers.{l}.mlp.dense_h_to_4h.weight", "up : ffn/tp hidden"},
    {"language_model.encoder.layers.{l}.mlp.dense_h_to_4h.bias", "upb : ffn/tp"},
};

// Each rank holds its part of the gate in front of its part of the other half.
constexpr TensorRule kGatedMlp[] = {
    {"language_model.encoder.layers.{l}.mlp.dense_h_to_4h.weight",
     "({gate ffn/tp | up ffn/tp}) hidden"},
    {"language_model.encoder.layers.{l}.mlp.dense_h_to_4h.bias", "({gateb ffn/tp | upb ffn/tp})"},
};

constexpr TensorRule kFiltered[] = {
    {"language_model.encoder.layers.{l}.self_attention.get_value.weight", "v : (kv/tp d) hidden"},
    {"language_model.encoder.layers.{l}.self_attention.get_query_key.weight",
     "(kv/tp {q group | k} d) hidden"},
    {"language_model.encoder.layers.{l}.self_attention.lf_gate.conv1.weight",
     "conv1 : filter conv_in tap one"},
    {"language_model.encoder.layers.{l}.self_attention.lf_gate.conv1.bias", "conv1b : filter"},
    {"language_model.encoder.layers.{l}.self_attention.lf_gate.conv2.weight",
     "conv2 : hidden conv_mid tap one"},
    {"language_model.encoder.layers.{l}.self_attention.lf_gate.conv2.bias", "conv2b : hidden"},
    {"language_model.encoder.layers.{l}.self_attention.lf_gate.output_layernorm.weight",
     "lf_norm : hidden"},
};

constexpr std::string_view kQkvWeight =
    "language_model.encoder.layers.{l}.self_attention.query_key_value.weight";
constexpr std::string_view kQkvBias =
    "language_model.encoder.layers.{l}.self_attention.query_key_value.bias";

/// The order of rows inside a rank's fused tensor changed twice.
struct QkvOrder {
  double version;
  std::string_view weight, bias;
};
constexpr QkvOrder kQkvOrders[] = {
    {0, "({q heads/tp d | k kv/tp d | v kv/tp d}) hidden",
     "({qb heads/tp d | kb kv/tp d | vb kv/tp d})"},
    {1, "(kv/tp d {q group | k | v}) hidden", "(kv/tp d {qb group | kb | vb})"},
    {2, "(kv/tp {q group | k | v} d) hidden", "(kv/tp {qb group | kb | vb} d)"},
    {3, "(kv/tp {q group | k | v} d) hidden", "(kv/tp {qb group | kb | vb} d)"},
};

constexpr std::string_view kHead = "language_model.output_layer.weight";
constexpr std::string_view kTiedHead = "word_embeddings_for_head.weight";
constexpr std::string_view kHeadLayout = "head : vocab~/tp hidden";
constexpr std::string_view kEmbedLayout = "embed : vocab~/tp hidden";

constexpr std::string_view kBuffer = "rotary table buffer";

const QkvOrder* find_order(double version) {
  for (const QkvOrder& order : kQkvOrders) {
    if (order.version == version) return &order;
  }
  return nullptr;
}

std::string number_text(double value) {
  std::string text = std::to_string(value);
  while (text.ends_with('0')) text.pop_back();
  if (text.ends_with('.')) text += '0';
  return text;
}

constinit const Family kMegatronFamily = {
    .name = "megatron-gpt",
    .architectures = {},
    .model_types = {},
    .defaults = nullptr,
    .keys = {},
    .read_rest = nullptr,
    .write_rest = nullptr,
    .prefix = "",
    .tensors = {},
    .drops = {},
};

/// `args`, with what the user says in front.
class Args {
 public:
  Args(const formats::Checkpoint& checkpoint, const std::map<std::string, std::string>& settings)
      : settings_(settings), where_(checkpoint.path.string()) {
    if (checkpoint.megatron) args_ = checkpoint.megatron->args();
  }

  bool are_there() const { return args_.has_value(); }

  /// Whether the caller has said it, in place of the checkpoint.
  bool is_set(const char* key) const { return setting(key) != nullptr; }

  /// What the checkpoint says, whatever the caller does.
  std::optional<int64_t> find_stored_int(const char* key) const {
    const auto node = find(key);
    return node ? node->find_int() : std::nullopt;
  }

  /// Requires: all that matters for the model has been asked for.
  void check_all_read() const {
    for (const auto& [key, value] : settings_) {
      if (asked_.count(key) != 0) continue;
      throw_usage("--set " + printable(key, 60) + "=" + printable(value, 60),
                  "nothing of this model depends on it",
                  "check its spelling: names are those of Megatron's args");
    }
  }

  std::optional<int64_t> find_int(const char* key) const {
    if (const std::string* text = setting(key)) {
      size_t used = 0;
      int64_t value = 0;
      try {
        value = std::stoll(*text, &used);
      } catch (const std::exception&) {
        used = 0;
      }
      if (used == 0 || used != text->size()) refuse(key, *text, "a whole number");
      return value;
    }
    const auto node = find(key);
    return node ? node->find_int() : std::nullopt;
  }

  std::optional<double> find_float(const char* key) const {
    if (const std::string* text = setting(key)) {
      size_t used = 0;
      double value = 0;
      try {
        value = std::stod(*text, &used);
      } catch (const std::exception&) {
        used = 0;
      }
      if (used == 0 || used != text->size()) refuse(key, *text, "a number");
      return value;
    }
    const auto node = find(key);
    return node ? node->find_float() : std::nullopt;
  }

  std::optional<bool> find_bool(const char* key) const {
    if (const std::string* text = setting(key)) {
      if (*text != "true" && *text != "false") refuse(key, *text, "true or false");
      return *text == "true";
    }
    const auto node = find(key);
    return node ? node->find_bool() : std::nullopt;
  }

  /// A text, or the member's name of an enum; an enum called with a value gives nothing.
  std::optional<std::string> find_text(const char* key) const {
    if (const std::string* text = setting(key)) return *text;
    const auto node = find(key);
    if (!node) return std::nullopt;
    if (const auto text = node->find_text()) return std::string(*text);
    if (node->kind() == formats::PickleKind::kObject) {
      // getattr(Class, 'name')
      const auto arguments = node->arguments();
      if (arguments && arguments->size() == 2) {
        if (const auto text = arguments->item(1).find_text()) return std::string(*text);
      }
    }
    return std::nullopt;
  }

  /// The value that an enum's class was called with.
  std::optional<int64_t> find_enum_value(const char* key) const {
    const auto node = find(key);
    if (!node || node->kind() != formats::PickleKind::kObject) return std::nullopt;
    const auto arguments = node->arguments();
    if (!arguments || arguments->size() != 1) return std::nullopt;
    return arguments->item(0).find_int();
  }

 private:
  const std::string* setting(const char* key) const {
    asked_.insert(key);
    const auto it = settings_.find(key);
    return it == settings_.end() ? nullptr : &it->second;
  }

  std::optional<formats::PickleNode> find(const char* key) const {
    return args_ ? args_->find(key) : std::nullopt;
  }

  [[noreturn]] static void refuse(const char* key, const std::string& text,
                                  const std::string& expected) {
    throw_usage("--set " + std::string(key) + "=" + printable(text), "expected " + expected);
  }

  const std::map<std::string, std::string>& settings_;
  std::string where_;
  std::optional<formats::PickleNode> args_;
  mutable std::set<std::string> asked_;
};

class ConfigReader {
 public:
  ConfigReader(const formats::Checkpoint& checkpoint,
               const std::map<std::string, std::string>& settings)
      : checkpoint_(checkpoint),
        info_(*checkpoint.megatron),
        args_(checkpoint, settings),
        where_(checkpoint.path.string()) {
    std::map<std::string, DType> dtypes;
    for (const formats::StoredTensor& tensor : checkpoint.tensors) {
      const auto [dtype, first] = dtypes.insert({tensor.name, tensor.dtype});
      if (!first && dtype->second != tensor.dtype) {
        throw_invalid(where_,
                      "tensor '" + printable(tensor.name) + "' is " +
                          std::string(dtype_name(dtype->second)) + " on one rank and " +
                          std::string(dtype_name(tensor.dtype)) + " on another",
                      "the ranks are of different runs");
      }
      const auto [it, fresh] = shapes_.insert({tensor.name, tensor.shape});
      if (!fresh && it->second != tensor.shape) {
        throw_invalid(where_,
                      "tensor '" + printable(tensor.name) + "' is " + text_of(it->second) +
                          " on one rank and " + text_of(tensor.shape) + " on another",
                      "the ranks are of different runs");
      }
    }
  }

  MegatronDescription read(bool keep_vocab_padding) {
    read_version();
    read_sizes();
    check_stages();
    read_positions();
    read_kinds();
    choose_family();
    read_vocab(keep_vocab_padding);
    check_args();
    args_.check_all_read();
    validate(c_, where_);
    return {c_, version_};
  }

 private:
  static std::string text_of(const Shape& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
  }

  std::string spelled(std::string_view name) const {
    return with_layer(info_.dialect.spell(name), 0);
  }

  const Shape* find(std::string_view name) const {
    const auto it = shapes_.find(spelled(name));
    return it == shapes_.end() ? nullptr : &it->second;
  }

  const Shape& matrix(std::string_view name) const {
    const Shape* shape = find(name);
    if (shape == nullptr) {
      throw_invalid(where_, "tensor '" + spelled(name) + "' is missing",
                    "llmctl reads Megatron's GPT models: of BERT, T5 and mixtures of experts it "
                    "knows nothing");
    }
    if (shape->size() != 2 || (*shape)[0] < 1 || (*shape)[1] < 1) {
      throw_invalid(where_, "tensor '" + spelled(name) + "' has the shape " + text_of(*shape) +
                                ", expected a matrix");
    }
    return *shape;
  }

  [[noreturn]] void refuse_contradiction(const std::string& arg, const std::string& args_say,
                                         const std::string& files_say) const {
    throw_invalid(where_, "args." + arg + " is " + args_say + ", but the tensors say " + files_say,
                  "if the tensors are right, give --set " + arg + "=" + files_say);
  }

  [[noreturn]] void refuse_heads(int64_t heads, const std::string& why) const {
    throw_invalid(where_, "args.num_attention_heads is " + std::to_string(heads) + ", " + why,
                  "give the true number: --set num_attention_heads=N");
  }

  void read_version() {
    version_ = info_.checkpoint_version;
    if (const auto version = args_.find_float("checkpoint_version")) version_ = *version;
    if (info_.dialect.core) version_ = std::max(version_, 2.0);
    if (find_order(version_) == nullptr) {
      throw_invalid(where_, "checkpoint_version " + number_text(version_) + " is unknown",
                    "0, 1.0, 2.0 and 3.0 are known; --set checkpoint_version=3.0 forces one");
    }
  }

  void read_sizes() {
    const int64_t tp = checkpoint_.tensor_parallel_size;
    c_.family = kMegatronFamily.name;
    const Shape& table = matrix("language_model.embedding.word_embeddings.weight");
    padded_vocab_ = table[0] * tp;
    c_.hidden_size = table[1];
    for (const auto& chunk : info_.layers) {
      for (const int64_t count : chunk) c_.num_hidden_layers += count;
    }
    const std::string layer = "language_model.encoder.layers.{l}.";
    const Shape& down = matrix(layer + "mlp.dense_4h_to_h.weight");
    const Shape& up = matrix(layer + "mlp.dense_h_to_4h.weight");
    c_.intermediate_size = down[1] * tp;
    c_.gated_mlp = up[0] == 2 * down[1];
    const auto heads = args_.find_int("num_attention_heads");
    if (!heads) {
      throw_invalid(
          where_, args_.are_there() ? "args has no num_attention_heads" : "the files have no args",
          "say it: --set num_attention_heads=N");
    }
    c_.num_attention_heads = *heads;
    const int64_t width = matrix(layer + "self_attention.dense.weight")[1] * tp;
    if (*heads < 1 || width % *heads != 0) {
      refuse_heads(*heads, "which does not divide the attention's width " + std::to_string(width));
    }
    c_.head_dim = width / *heads;
    if (const auto channels = args_.find_int("kv_channels"); channels && *channels != c_.head_dim) {
      refuse_contradiction("kv_channels", std::to_string(*channels), std::to_string(c_.head_dim));
    }
    c_.localized_filtering = find(layer + "self_attention.lf_gate.conv1.weight") != nullptr;
    if (c_.localized_filtering) {
      c_.num_key_value_heads = c_.num_attention_heads;
      const Shape& conv = *find(layer + "self_attention.lf_gate.conv1.weight");
      if (conv.size() == 4 && conv[1] > 0 && c_.hidden_size % conv[1] == 0) {
        c_.lf_groups = c_.hidden_size / conv[1];
      }
      return;
    }
    const int64_t rows =
        matrix("language_model.encoder.layers.{l}.self_attention.query_key_value.weight")[0] * tp;
    const int64_t both = rows - width;
    if (both < 2 * c_.head_dim || both % (2 * c_.head_dim) != 0) {
      refuse_heads(*heads, "but of the " + std::to_string(rows) + " rows of query, key and value " +
                               std::to_string(width) +
                               " are queries, and the others are no key and value heads of width " +
                               std::to_string(c_.head_dim));
    }
    c_.num_key_value_heads = both / (2 * c_.head_dim);
    const auto groups = args_.find_int("num_query_groups");
    if (args_.find_bool("group_query_attention").value_or(false) && groups &&
        *groups != c_.num_key_value_heads) {
      refuse_contradiction("num_query_groups", std::to_string(*groups),
                           std::to_string(c_.num_key_value_heads));
    }
    if (tp > c_.num_key_value_heads) {
      throw_invalid(where_,
                    "tensor-parallel size " + std::to_string(tp) + " cuts the " +
                        std::to_string(c_.num_key_value_heads) +
                        " query groups, which llmctl does not read",
                    "reshard it with the tool that wrote it first");
    }
    if (version_ < 2 && c_.num_key_value_heads != c_.num_attention_heads) {
      throw_invalid(where_,
                    "checkpoint_version " + number_text(version_) +
                        " knows no grouped queries, and the tensors have " +
                        std::to_string(c_.num_key_value_heads) + " groups",
                    "--set checkpoint_version=3.0 if the file lacks it by mistake");
    }
  }

  void read_positions() {
    if (const Shape* table = find("language_model.embedding.position_embeddings.weight")) {
      if (table->size() != 2) {
        throw_invalid(where_, "the position table has the shape " + text_of(*table));
      }
      c_.position = PositionKind::kLearned;
      c_.max_position_embeddings = (*table)[0];
      return;
    }
    c_.max_position_embeddings = args_.find_int("max_position_embeddings")
                                     .value_or(args_.find_int("seq_length").value_or(0));
    std::string kind = args_.find_text("position_embedding_type").value_or("");
    // Megatron-DeepSpeed's PositionEmbeddingType: rotary 1, absolute 2, alibi 3.
    if (const auto value = args_.find_enum_value("position_embedding_type")) {
      kind = *value == 1 ? "rope" : *value == 3 ? "alibi" : kind;
    }
    const bool is_flagged = args_.find_bool("use_rotary_position_embeddings").value_or(false) ||
                            args_.find_bool("use_rotary_emb").value_or(false);
    if (kind == "alibi") {
      c_.position = PositionKind::kAlibi;
      c_.max_position_embeddings = 0;
      return;
    }
    if (kind == "none" && !is_flagged) {
      c_.position = PositionKind::kNone;
      return;
    }
    if (kind != "rope" && kind != "rotary" && !is_flagged) {
      throw_invalid(where_,
                    "args do not say how positions are encoded" +
                        (kind.empty() ? "" : " ('" + printable(kind, 40) + "')"),
                    "say it: --set position_embedding_type=rope|alibi|none");
    }
    c_.position = PositionKind::kRotary;
    c_.rotary_dim = static_cast<int64_t>(static_cast<double>(c_.head_dim) *
                                         args_.find_float("rotary_percent").value_or(1.0));
    c_.rope_theta = args_.find_float("rotary_base").value_or(10000.0);
    if (args_.find_bool("rotary_interleaved").value_or(false)) {
      c_.rotary_pairing = RotaryPairing::kInterleaved;
    }
    if (args_.find_bool("use_rope_scaling").value_or(false)) {
      c_.rope_scaling.kind = "llama3";
      c_.rope_scaling.factor = args_.find_float("rope_scaling_factor").value_or(8.0);
      c_.rope_scaling.original_max_position_embeddings = 8192;
    } else if (const auto factor = args_.find_float("rotary_seq_len_interpolation_factor");
               factor && *factor != 1.0) {
      c_.rope_scaling.kind = "linear";
      c_.rope_scaling.factor = *factor;
    }
  }

  bool has_layer(const std::string& name) const {
    return find("language_model.encoder.layers.{l}." + name) != nullptr;
  }

  void read_kinds() {
    const std::string norm =
        args_.find_text("normalization").value_or(args_.find_text("norm_dtype").value_or(""));
    const bool has_bias = has_layer("input_layernorm.bias");
    c_.norm = norm == "RMSNorm" || (norm.empty() && !has_bias) ? NormKind::kRmsNorm
                                                               : NormKind::kLayerNorm;
    if (has_bias != (c_.norm == NormKind::kLayerNorm)) {
      throw_invalid(where_, std::string("the norms have ") + (has_bias ? "" : "no ") +
                                "biases, and args say " + norm);
    }
    if (args_.find_bool("apply_layernorm_1p").value_or(false)) {
      throw_invalid(where_,
                    "the norms store their weight minus one (apply_layernorm_1p), which "
                    "llmctl does not read");
    }
    c_.norm_eps = args_.find_float("norm_epsilon")
                      .value_or(args_.find_float("layernorm_epsilon").value_or(1e-5));
    c_.embedding_norm = find("language_model.embedding.word_embeddings.norm.weight") != nullptr;
    c_.residual_from_norm =
        args_.find_bool("apply_residual_connection_post_layernorm").value_or(false);
    c_.qkv_bias = has_layer("self_attention.query_key_value.bias");
    c_.o_bias = has_layer("self_attention.dense.bias");
    c_.mlp_bias = has_layer("mlp.dense_4h_to_h.bias");
    if (args_.find_bool("squared_relu").value_or(false)) {
      throw_invalid(where_, "its activation is the squared ReLU, which llmctl does not compute");
    }
    if (c_.gated_mlp) {
      const std::string glu = args_.find_text("glu_activation").value_or("swiglu");
      c_.activation = glu == "geglu" ? Activation::kGelu : Activation::kSilu;
    } else {
      // Without the fused kernel, PyTorch's exact GELU runs.
      const bool is_exact = args_.find_bool("onnx_safe_gelu").value_or(false) ||
                            (!args_.find_bool("openai_gelu").value_or(false) &&
                             !args_.find_bool("bias_gelu_fusion").value_or(true));
      c_.activation = is_exact ? Activation::kGelu : Activation::kGeluTanh;
    }
    const bool has_head = find(kHead) != nullptr;
    const auto untied = args_.find_bool("untie_embeddings_and_output_weights");
    const bool is_copy = info_.dialect.core && !untied.value_or(false);
    c_.tie_word_embeddings = !has_head || is_copy;
    if (untied && *untied != !c_.tie_word_embeddings) {
      refuse_contradiction("untie_embeddings_and_output_weights", *untied ? "true" : "false",
                           c_.tie_word_embeddings ? "false" : "true");
    }
  }

  void choose_family() {
    if (c_.localized_filtering) {
      c_.family = "yuan";
      c_.norm_eps = 1e-6;  // a constant of Yuan's code
      // A table in BF16 is what the BF16 wrapper of Megatron makes of it, and no other.
      c_.rope_in_bf16 = std::any_of(checkpoint_.tensors.begin(), checkpoint_.tensors.end(),
                                    [](const auto& tensor) { return tensor.dtype == DType::BF16; });
      c_.bos_token_id = c_.pad_token_id = 77185;
      c_.eos_token_ids = {77185};
      return;
    }
    const bool layer_norm = c_.norm == NormKind::kLayerNorm;
    const bool all_biases = c_.qkv_bias && c_.o_bias && c_.mlp_bias;
    const bool no_groups = c_.num_key_value_heads == c_.num_attention_heads;
    const bool plain_heads = c_.head_dim * c_.num_attention_heads == c_.hidden_size;
    if (c_.gated_mlp && !layer_norm && c_.position == PositionKind::kRotary &&
        c_.rotary_dim == c_.head_dim && c_.rotary_pairing == RotaryPairing::kHalf &&
        c_.activation == Activation::kSilu && !c_.embedding_norm) {
      if (c_.qkv_bias == c_.o_bias) {
        c_.family = "llama";
      } else if (c_.qkv_bias && !c_.mlp_bias && plain_heads) {
        c_.family = "qwen2";
      }
    } else if (!c_.gated_mlp && layer_norm && all_biases && no_groups && plain_heads) {
      if (c_.position == PositionKind::kLearned && !c_.embedding_norm && !c_.residual_from_norm) {
        c_.family = "gpt2";
      } else if (c_.position == PositionKind::kAlibi && c_.embedding_norm &&
                 c_.intermediate_size == 4 * c_.hidden_size &&
                 c_.activation == Activation::kGeluTanh) {
        c_.family = "bloom";
      } else if (c_.position == PositionKind::kRotary && !c_.embedding_norm &&
                 !c_.residual_from_norm && c_.rotary_pairing == RotaryPairing::kHalf) {
        c_.family = "gpt_neox";
      }
    }
    // Which tokens end a text, Megatron does not say: generation_config.json may, beside it.
    if (const Family* family = find_family_by_name(c_.family)) {
      ModelConfig defaults;
      family->defaults(defaults);
      if (family->name != "llama") c_.eos_token_ids = defaults.eos_token_ids;
    }
  }

  void read_vocab(bool keep_padding) {
    c_.vocab_size = padded_vocab_;
    const auto padded = args_.find_int("padded_vocab_size");
    if (padded && *padded != padded_vocab_) {
      refuse_contradiction("padded_vocab_size", std::to_string(*padded),
                           std::to_string(padded_vocab_));
    }
    const auto size = args_.find_int("vocab_size");
    // NullTokenizer's vocab_size does not count its end-of-document token.
    const bool is_null = args_.find_text("tokenizer_type").value_or("") == "NullTokenizer";
    const int64_t stored = is_null ? 0 : args_.find_stored_int("vocab_size").value_or(0);
    const std::string rows = "the embedding has " + std::to_string(padded_vocab_) + " rows";
    if (args_.is_set("vocab_size")) {
      const std::string flag = "--vocab-size " + std::to_string(*size);
      if (*size < 1 || *size > padded_vocab_) throw_usage(flag, rows);
      if (stored != *size && stored >= 1 && stored <= padded_vocab_) {
        throw_usage(flag, "args.vocab_size is " + std::to_string(stored), "leave it out");
      }
    } else {
      if (!size || *size < 1 || is_null) return;
      if (*size > padded_vocab_) {
        throw_invalid(where_, "args.vocab_size is " + std::to_string(*size) + ", but " + rows,
                      "say how many are no padding: --vocab-size N");
      }
      const int64_t multiple =
          std::max<int64_t>(128, args_.find_int("make_vocab_size_divisible_by").value_or(128));
      if (padded_vocab_ - *size >= multiple * 1024) return;
    }
    if (keep_padding) {
      c_.true_vocab_size = *size;
    } else {
      c_.vocab_size = *size;
    }
  }

  void check(const char* name, int64_t found) const {
    const auto value = args_.find_int(name);
    if (value && *value != found) {
      refuse_contradiction(name, std::to_string(*value), std::to_string(found));
    }
  }

  /// Before anything is concluded from tensors that the last stage would have.
  void check_stages() const {
    const auto stages = args_.find_int("pipeline_model_parallel_size");
    const auto layers = args_.find_int("num_layers");
    if (stages && *stages > checkpoint_.pipeline_parallel_size && layers &&
        *layers > c_.num_hidden_layers) {
      throw_invalid(where_,
                    "args tell of " + std::to_string(*stages) + " pipeline stages and " +
                        std::to_string(*layers) + " layers, and there are " +
                        std::to_string(checkpoint_.pipeline_parallel_size) + " and " +
                        std::to_string(c_.num_hidden_layers),
                    "the files of the last stages are missing; fetch them again");
    }
  }

  void check_args() const {
    check("hidden_size", c_.hidden_size);
    check("num_layers", c_.num_hidden_layers);
    check("ffn_hidden_size", c_.intermediate_size);
  }

  const formats::Checkpoint& checkpoint_;
  const formats::MegatronInfo& info_;
  Args args_;
  std::string where_;
  std::map<std::string, Shape, std::less<>> shapes_;
  ModelConfig c_;
  double version_ = 0;
  int64_t padded_vocab_ = 0;
};

}  // namespace

const Family& megatron_family() { return kMegatronFamily; }

void MegatronRules::add(const MegatronDialect& dialect, std::string_view name,
                        std::string_view layout) {
  rules_.push_back({names_.emplace_back(dialect.spell(name)), layout});
}

MegatronRules::MegatronRules(const ModelConfig& config, const MegatronDialect& dialect,
                             double version) {
  const QkvOrder* order = find_order(version);
  if (order == nullptr) {
    throw_usage("checkpoint_version " + number_text(version), "is unknown", "use 3.0");
  }
  for (const TensorRule& rule : kWhole) add(dialect, rule.name, rule.layout);
  const std::span<const TensorRule> mlp =
      config.gated_mlp ? std::span<const TensorRule>(kGatedMlp) : kPlainMlp;
  for (const TensorRule& rule : mlp) add(dialect, rule.name, rule.layout);
  if (config.localized_filtering) {
    for (const TensorRule& rule : kFiltered) add(dialect, rule.name, rule.layout);
  } else {
    add(dialect, kQkvWeight, order->weight);
    add(dialect, kQkvBias, order->bias);
  }
  if (config.tie_word_embeddings) {
    add(dialect, kTiedHead, kEmbedLayout);
  } else {
    add(dialect, kHead, kHeadLayout);
  }
  for (const char* name : {"language_model.encoder.rotary_pos_emb.inv_freq",
                           "language_model.rotary_pos_emb.inv_freq", "rotary_pos_emb.inv_freq"}) {
    drops_.push_back({names_.emplace_back(dialect.spell(name)), kBuffer});
  }
}

MegatronDescription read_megatron_config(const formats::Checkpoint& checkpoint,
                                         const std::map<std::string, std::string>& settings,
                                         bool keep_vocab_padding) {
  return ConfigReader(checkpoint, settings).read(keep_vocab_padding);
}

std::vector<int64_t> share_layers(int64_t num_layers, int64_t pp, int64_t virtual_pp,
                                  const std::vector<int64_t>& blocks) {
  if (blocks.empty()) {
    const int64_t chunks = pp * virtual_pp;
    if (num_layers % chunks != 0) {
      throw_usage(
          "pipeline-parallel size " + std::to_string(pp) +
              (virtual_pp > 1 ? " x " + std::to_string(virtual_pp) + " virtual stages" : ""),
          std::to_string(num_layers) + " layers cannot be shared evenly",
          "give --pipeline-blocks with the layers of each stage");
    }
    return std::vector<int64_t>(static_cast<size_t>(chunks), num_layers / chunks);
  }
  std::string text;
  int64_t sum = 0;
  for (const int64_t block : blocks) {
    text += (text.empty() ? "" : ",") + std::to_string(block);
    sum += block;
  }
  if (virtual_pp > 1) {
    throw_usage("--pipeline-blocks " + text, "does not go with virtual stages",
                "leave one of the two out");
  }
  if (static_cast<int64_t>(blocks.size()) != pp) {
    throw_usage("--pipeline-blocks " + text,
                std::to_string(blocks.size()) + " blocks for " + std::to_string(pp) + " stages");
  }
  if (sum != num_layers) {
    throw_usage("--pipeline-blocks " + text, "the blocks hold " + std::to_string(sum) +
                                                 " layers, the model has " +
                                                 std::to_string(num_layers));
  }
  return blocks;
}

int64_t pad_vocab(int64_t rows, int64_t tp, int64_t multiple) {
  if (rows % tp == 0) return rows;
  const int64_t step = multiple * tp;
  return (rows + step - 1) / step * step;
}

Plan plan_megatron(const Model& model, const MegatronTarget& target,
                   const std::function<DType(const Shape&, DType)>& dtype) {
  const ModelConfig& config = model.config();
  if (config.residual != ResidualKind::kSequential || !config.pre_norm || config.head_bias ||
      !config.norm_affine || config.embed_dim() != config.hidden_size) {
    throw_usage("Megatron", "no Megatron-LM model computes " + config.family +
                                " models of this shape (parallel residuals, norms behind the "
                                "layers, a bias of the head or a projected embedding)");
  }
  const auto refuse = [&](const std::string& what) {
    throw_usage("Megatron", "no Megatron-LM model computes " + what,
                "convert to hf or ft, which can say it");
  };
  const std::string activation(activation_name(config.activation));
  // A gated GELU is known to Megatron-DeepSpeed alone, which says so in args.
  const bool is_geglu = config.gated_mlp && config.activation == Activation::kGelu &&
                        model.checkpoint().megatron != nullptr;
  if (config.gated_mlp && config.activation != Activation::kSilu && !is_geglu) {
    refuse("a gated MLP with " + activation);
  }
  if (!config.gated_mlp && config.activation != Activation::kGelu &&
      config.activation != Activation::kGeluTanh) {
    refuse("an MLP with " + activation);
  }
  // Megatron's own scaling has these two and the original length as constants.
  const RopeScaling& rope = config.rope_scaling;
  if (rope.kind != "default" && rope.kind != "linear" && rope.kind != "llama3") {
    refuse("rope scaling '" + rope.kind + "'");
  }
  if (rope.kind == "llama3" && (rope.low_freq_factor != 1.0 || rope.high_freq_factor != 4.0 ||
                                rope.original_max_position_embeddings != 8192)) {
    refuse("rope scaling llama3 with other frequencies than 1 and 4 over 8192 positions");
  }
  if (config.attention_scale != 0.0) refuse("another attention scale than 1/sqrt(head_dim)");
  if (config.scale_attn_by_inverse_layer_idx) refuse("attention scaled by the layer's index");
  if (config.sliding_window != 0) {
    refuse("a sliding window of " + std::to_string(config.sliding_window));
  }
  if (target.tp > config.num_key_value_heads || config.num_key_value_heads % target.tp != 0) {
    std::string sizes;
    for (int64_t tp = 1; tp <= std::min<int64_t>(config.num_key_value_heads, 128); ++tp) {
      if (config.num_key_value_heads % tp == 0 && config.intermediate_size % tp == 0) {
        sizes += (sizes.empty() ? "" : ", ") + std::to_string(tp);
      }
    }
    throw_usage("--tp " + std::to_string(target.tp),
                "the " + std::to_string(config.num_key_value_heads) +
                    " key-value heads cannot be shared by so many ranks",
                "use one of " + sizes);
  }
  if (target.version < 2 && config.num_key_value_heads != config.num_attention_heads) {
    throw_usage("checkpoint_version " + number_text(target.version), "knows no grouped queries",
                "use 3.0");
  }
  const MegatronRules all(config, target.dialect, target.version);
  const std::string tied = target.dialect.spell(kTiedHead);
  Plan plan;
  plan.model = &model;
  int64_t first_layer = 0;
  const auto chunks = static_cast<int64_t>(target.layers.size());
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const bool is_first = chunk == 0, is_last = chunk + 1 == chunks;
    std::vector<TensorRule> rules;
    for (const TensorRule& rule : all.rules()) {
      if (!is_layer_pattern(rule.name)) {
        const std::string_view layout = rule.layout;
        const bool is_copy = config.tie_word_embeddings && rule.name == tied;
        // The copy of the embedding lets the last stage compute logits.
        if (is_copy ? !is_last || target.pp == 1
                    : !(layout.starts_with("embed") || layout.starts_with("pos") ? is_first
                                                                                 : is_last)) {
          continue;
        }
      }
      rules.push_back(rule);
    }
    PlanOptions options;
    options.tp = target.tp;
    options.first_layer = options.layer_offset = first_layer;
    options.end_layer = first_layer + target.layers[static_cast<size_t>(chunk)];
    options.every_rank = true;
    options.padded_sizes = {{"vocab", target.padded_vocab_size}};
    options.dtype = dtype;
    options.must_use_all = false;
    options.target_name = "Megatron";
    Plan part = make_plan(model, rules, options);
    const std::string prefix =
        target.virtual_pp > 1 ? "model" + std::to_string(chunk / target.pp) + "." : "model.";
    for (PlannedTensor& tensor : part.tensors) {
      tensor.target.name = prefix + tensor.target.name;
      tensor.target.pp_rank = static_cast<int>(chunk % target.pp);
      plan.tensors.push_back(std::move(tensor));
    }
    if (is_first) plan.left_out = part.left_out;
    plan.used.merge(part.used);
    first_layer = options.end_layer;
  }
  check_all_used(model, plan.used, "Megatron");
  return plan;
}

}  // namespace llmctl::reshard
