#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>

#include "formats/core/error.h"
#include "formats/ini.h"
#include "reshard/config_fields.h"
#include "reshard/faster_transformer.h"

namespace llmctl::reshard {
namespace {

using formats::Ini;

bool has_head(const formats::Checkpoint& checkpoint) {
  return std::any_of(
      checkpoint.tensors.begin(), checkpoint.tensors.end(),
      [](const formats::StoredTensor& tensor) { return tensor.name == "model.lm_head.weight"; });
}

constexpr std::string_view kSections[] = {"gpt", "gptj", "gptneox", "llama", "qwen2"};

std::string find_section(const Ini& ini, const std::string& where) {
  for (const std::string_view section : kSections) {
    if (ini.has_section(section)) return std::string(section);
  }
  throw_invalid(where, "none of the sections gpt, gptj, gptneox, llama, qwen2 is there");
}

std::optional<Activation> find_ft_activation(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (text == "gelu") return Activation::kGeluTanh;
  if (text == "relu") return Activation::kRelu;
  if (text == "silu") return Activation::kSilu;
  return std::nullopt;
}

/// The [gpt] section serves three families; the switches tell them apart.
void read_gpt(ModelConfig& c, const Ini& ini, const std::string& where) {
  const std::string s = "gpt";
  const auto flag = [&](const char* key, bool otherwise) {
    return ini.find_bool(s, key).value_or(otherwise);
  };
  const std::string variant = ini.find(s, "model_variant").value_or("");
  const std::string activation = ini.find(s, "activation_type").value_or("Gelu");
  const auto known = find_ft_activation(activation);
  if (!known)
    throw_invalid(where, "activation_type '" + printable(activation) + "' is not supported");
  c.activation = *known;
  const bool alibi = flag("use_attention_linear_bias", false);
  c.position = flag("has_positional_encoding", true) ? PositionKind::kLearned
               : alibi                               ? PositionKind::kAlibi
                                                     : PositionKind::kNone;
  c.embedding_norm = flag("has_pre_decoder_layernorm", false);
  c.final_norm = flag("has_post_decoder_layernorm", true);
  const bool post = ini.find(s, "layernorm_type").value_or("pre_layernorm") == "post_layernorm";
  const bool bloom = alibi || c.embedding_norm || variant.starts_with("bloom");
  if (bloom) {
    c.family = "bloom";
    c.residual_from_norm = post;
  } else {
    c.family = c.activation == Activation::kRelu || variant.starts_with("opt") ? "opt" : "gpt2";
    c.pre_norm = !post;
  }
  if (c.position == PositionKind::kLearned) {
    c.max_position_embeddings = ini.get_integer(s, "max_pos_seq_len");
  }
}

ModelConfig read_sections(const Ini& ini, bool head_is_there, const std::string& where) {
  const std::string s = find_section(ini, where);
  ModelConfig c;
  c.num_attention_heads = ini.get_integer(s, "head_num");
  c.head_dim = ini.get_integer(s, "size_per_head");
  c.num_key_value_heads = ini.find_integer(s, "kv_head_num").value_or(c.num_attention_heads);
  c.intermediate_size = ini.get_integer(s, "inter_size");
  c.num_hidden_layers = ini.get_integer(s, "num_layer");
  c.vocab_size = ini.get_integer(s, "vocab_size");
  if (c.num_attention_heads < 1 || c.num_attention_heads > 65536 || c.head_dim < 1 ||
      c.head_dim > 65536) {
    throw_invalid(where, "head_num or size_per_head out of range");
  }
  c.hidden_size = ini.find_integer(s, "hidden_size").value_or(c.num_attention_heads * c.head_dim);
  c.bos_token_id = c.pad_token_id = -1;
  const auto token = [&](const char* key) -> int64_t {
    const auto text = ini.find(s, key);
    // FasterTransformer's converters write Python's None for a config without the id.
    if (!text || *text == "None" || (!text->empty() && text->front() == '[')) return -1;
    return ini.find_integer(s, key).value_or(-1);
  };
  c.bos_token_id = token("start_id");
  if (const int64_t end = token("end_id"); end >= 0) c.eos_token_ids = {end};
  // Only the gpt loader takes the embedding where the head's file is absent. Which biases there are
  // follows from the section, never from the files: one that is missing must be missed.
  c.tie_word_embeddings = s == "gpt" && !head_is_there;
  c.qkv_bias = s == "gpt" || s == "gptneox" || s == "qwen2";
  c.o_bias = s == "gpt" || s == "gptneox";
  c.mlp_bias = s == "gpt" || s == "gptneox" || s == "gptj";
  c.norm_eps = ini.find_real(s, "layernorm_eps")
                   .value_or(ini.find_real(s, "rms_norm_eps").value_or(s == "gpt" ? 1e-6 : 1e-5));
  c.max_position_embeddings = ini.find_integer(s, "max_pos_seq_len").value_or(0);
  if (s == "gpt") {
    read_gpt(c, ini, where);
    // What Hugging Face's GPT-2 and OPT use; their converters forget to write it.
    if (!ini.find(s, "layernorm_eps")) c.norm_eps = 1e-5;
  } else {
    c.position = PositionKind::kRotary;
    c.rotary_dim = ini.find_integer(s, "rotary_embedding").value_or(c.head_dim);
    c.rope_theta = ini.find_real(s, "rope_theta").value_or(10000.0);
  }
  if (s == "gptj") {
    c.family = "gptj";
    c.rotary_pairing = RotaryPairing::kInterleaved;
    c.residual = ResidualKind::kParallelOneNorm;
    c.head_bias = true;
  } else if (s == "gptneox") {
    c.family = "gpt_neox";
    c.activation = Activation::kGelu;
    c.residual = ini.find_bool(s, "use_gptj_residual").value_or(true)
                     ? ResidualKind::kParallelTwoNorms
                     : ResidualKind::kSequential;
  } else if (s == "llama" || s == "qwen2") {
    c.family = s;
    c.norm = NormKind::kRmsNorm;
    c.activation = Activation::kSilu;
    c.gated_mlp = true;
  }
  return c;
}

/// Shortest text that reads back as the same double, as Python's repr writes it.
std::string python_float(double value) {
  char text[40];
  const double magnitude = std::fabs(value);
  const bool scientific = value != 0 && (magnitude < 1e-4 || magnitude >= 1e16);
  const auto result =
      std::to_chars(text, text + sizeof text, value,
                    scientific ? std::chars_format::scientific : std::chars_format::fixed);
  std::string out(text, result.ptr);
  if (!scientific && out.find('.') == std::string::npos) out += ".0";
  return out;
}

std::string python_ids(const std::vector<int64_t>& ids, bool exact) {
  if (ids.empty()) return exact ? "None" : "-1";
  if (ids.size() == 1 || !exact) return std::to_string(ids.front());
  std::string text = "[";
  for (size_t i = 0; i < ids.size(); ++i) text += (i ? ", " : "") + std::to_string(ids[i]);
  return text + "]";
}

std::string weight_type(DType dtype) {
  const std::string_view flag = dtype_info(dtype).flag;
  if (flag.empty()) {
    throw_usage("FasterTransformer", "weights must be fp32, fp16 or bf16", "give --dtype");
  }
  return std::string(flag);
}

/// Collects the lines of one section.
class Section {
 public:
  Section(std::string_view name, std::string_view separator) : separator_(separator) {
    text_ = "[" + std::string(name) + "]\n";
  }
  void add(const std::string& key, const std::string& value) {
    text_ += key + std::string(separator_) + value + "\n";
  }
  void add(const std::string& key, int64_t value) { add(key, std::to_string(value)); }
  void add(const std::string& key, bool) = delete;
  std::string text() const { return text_ + "\n"; }

 private:
  std::string_view separator_;
  std::string text_;
};

std::string bool_text(bool value) { return value ? "True" : "False"; }

std::string ft_activation(Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return "Relu";
    case Activation::kSilu:
      return "Silu";
    default:
      return "Gelu";
  }
}

std::string write_bloom(const ModelConfig& c, const FtConfigOptions& o) {
  Section s("gpt", "=");
  s.add("model_name", o.model_name);
  s.add("num_layer", c.num_hidden_layers);
  s.add("head_num", c.num_attention_heads);
  s.add("inter_size", c.intermediate_size);
  s.add("size_per_head", c.head_dim);
  s.add("vocab_size", c.vocab_size);
  s.add("tensor_para_size", o.tp);
  s.add("weight_data_type", weight_type(o.dtype));
  s.add("model_variant", std::string(c.residual_from_norm ? "bloom-post" : "bloom-pre"));
  s.add("layernorm_eps", python_float(c.norm_eps));
  s.add("layernorm_type", std::string(c.residual_from_norm ? "post_layernorm" : "pre_layernorm"));
  s.add("activation_type", std::string("Gelu"));
  s.add("has_positional_encoding", bool_text(false));
  s.add("has_pre_decoder_layernorm", bool_text(true));
  s.add("has_post_decoder_layernorm", bool_text(true));
  s.add("use_attention_linear_bias", bool_text(true));
  s.add("start_id", python_ids(c.bos_token_id < 0 ? std::vector<int64_t>{}
                                                  : std::vector<int64_t>{c.bos_token_id},
                               o.exact));
  s.add("end_id", python_ids(c.eos_token_ids, o.exact));
  return s.text();
}

std::string write_main_section(const ModelConfig& c, const FtConfigOptions& o) {
  if (c.family == "bloom" || c.embedding_norm) return write_bloom(c, o);
  const std::string_view name = ft_section(c);
  const bool gpt = name == "gpt", llama = c.gated_mlp;
  const bool opt = gpt && (c.family == "opt" || c.activation == Activation::kRelu || !c.pre_norm);
  Section s(name, " = ");
  s.add("model_name", o.model_name);
  s.add("head_num", c.num_attention_heads);
  if (c.num_key_value_heads != c.num_attention_heads) s.add("kv_head_num", c.num_key_value_heads);
  if (c.hidden_size != c.num_attention_heads * c.head_dim) s.add("hidden_size", c.hidden_size);
  s.add("size_per_head", c.head_dim);
  // The GPT-2 converter writes 4 h whatever n_inner says; a reader needs the truth.
  s.add("inter_size", o.exact && gpt && !opt ? 4 * c.hidden_size : c.intermediate_size);
  if (gpt) s.add("max_pos_seq_len", c.max_position_embeddings);
  s.add("num_layer", c.num_hidden_layers);
  if (!gpt) s.add("rotary_embedding", c.rotary_dim);
  if (opt) {
    s.add("layernorm_eps", std::string("1e-5"));
    s.add("layernorm_type", std::string(c.pre_norm ? "pre_layernorm" : "post_layernorm"));
    s.add("activation_type", ft_activation(c.activation));
    s.add("has_post_decoder_layernorm", std::string(c.final_norm ? "1" : "0"));
  }
  if (llama) s.add("layernorm_eps", python_float(c.norm_eps));
  s.add("vocab_size", c.vocab_size);
  s.add("start_id", python_ids(c.bos_token_id < 0 ? std::vector<int64_t>{}
                                                  : std::vector<int64_t>{c.bos_token_id},
                               o.exact));
  s.add("end_id", python_ids(c.eos_token_ids, o.exact));
  if (name == "gptneox") {
    s.add("use_gptj_residual",
          std::string(c.residual == ResidualKind::kParallelTwoNorms ? "1" : "0"));
  }
  s.add("weight_data_type", weight_type(o.dtype));
  if (opt) s.add("int8", bool_text(false));
  const bool writes_tp = gpt && !opt;
  if (writes_tp || !o.exact) s.add("tensor_para_size", o.tp);
  if (o.exact) return s.text();
  if (!opt && !llama) s.add("layernorm_eps", python_float(c.norm_eps));
  if (!gpt && c.max_position_embeddings > 0) s.add("max_pos_seq_len", c.max_position_embeddings);
  if (!gpt && c.rope_theta != 10000.0) s.add("rope_theta", python_float(c.rope_theta));
  return s.text();
}

constexpr std::string_view kOwnSection = "llmctl";

void read_own_section(ModelConfig& c, const Ini& ini, const std::string& where) {
  const std::string own(kOwnSection);
  if (const auto family = ini.find(own, "family")) c.family = *family;
  for (const ConfigField& field : config_field_table()) {
    if (const auto text = ini.find(own, field.name)) set_field_text(c, field, *text, where);
  }
  if (const auto text = ini.find(own, "rope_scaling")) {
    c.rope_scaling.kind = *text;
    nlohmann::ordered_json json = {{"rope_type", *text}};
    for (const char* key :
         {"factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow",
          "attention_factor", "mscale", "mscale_all_dim", "original_max_position_embeddings"}) {
      if (const auto value = ini.find_real(own, std::string("rope_") + key)) json[key] = *value;
    }
    c.rope_scaling = read_rope_scaling(json, where);
  }
  if (const auto text = ini.find(own, "eos_token_ids")) {
    c.eos_token_ids.clear();
    for (size_t i = 0; i < text->size();) {
      int64_t id = 0;
      const auto result = std::from_chars(text->data() + i, text->data() + text->size(), id);
      if (result.ec != std::errc()) throw_invalid(where, "eos_token_ids must be numbers");
      c.eos_token_ids.push_back(id);
      i = static_cast<size_t>(result.ptr - text->data());
      while (i < text->size() && ((*text)[i] == ' ' || (*text)[i] == ',')) ++i;
    }
  }
}

/// What a reader of the main section alone would get wrong.
std::string write_own_section(const ModelConfig& c, const ModelConfig& as_read) {
  Section s(kOwnSection, " = ");
  s.add("family", c.family);
  for (const ConfigField& field : config_field_table()) {
    // Whether the head is tied shows in the files.
    if (field.name == "tie_word_embeddings") continue;
    const std::string text = get_field_text(c, field);
    if (text != get_field_text(as_read, field)) s.add(std::string(field.name), text);
  }
  if (c.rope_scaling != as_read.rope_scaling) {
    if (!c.rope_scaling.short_factor.empty()) {
      throw_usage("FasterTransformer", "config.ini cannot hold longrope's lists of factors");
    }
    s.add("rope_scaling", c.rope_scaling.kind);
    const nlohmann::ordered_json scaling = write_rope_scaling(c.rope_scaling);
    for (const auto& [key, value] : scaling.items()) {
      if (value.is_number()) s.add("rope_" + key, python_float(value.get<double>()));
    }
  }
  if (c.eos_token_ids != as_read.eos_token_ids) {
    std::string ids;
    for (const int64_t id : c.eos_token_ids) ids += (ids.empty() ? "" : ", ") + std::to_string(id);
    s.add("eos_token_ids", ids);
  }
  return s.text();
}

}  // namespace

ModelConfig read_ft_config(const formats::Checkpoint& checkpoint) {
  const std::string where = checkpoint.path.string() + ": config.ini";
  const auto text = checkpoint.texts.find("config.ini");
  if (text == checkpoint.texts.end()) throw_invalid(where, "no such file");
  const Ini ini = Ini::parse(text->second, where);
  ModelConfig c = read_sections(ini, has_head(checkpoint), where);
  read_own_section(c, ini, where);
  for (const formats::StoredTensor& tensor : checkpoint.tensors) {
    if (dtype_info(tensor.dtype).is_float) {
      c.dtype = tensor.dtype;
      break;
    }
  }
  validate(c, where);
  return c;
}

std::vector<std::string> unsaid_in_ft(const ModelConfig& config, const FtConfigOptions& options) {
  FtConfigOptions own = options;
  own.exact = true;
  const ModelConfig read =
      read_sections(Ini::parse(write_main_section(config, own), "config.ini"), true, "config.ini");
  constexpr std::string_view kMatters[] = {"intermediate_size",
                                           "norm",
                                           "norm_eps",
                                           "pre_norm",
                                           "residual_from_norm",
                                           "residual",
                                           "position",
                                           "rotary_dim",
                                           "rotary_pairing",
                                           "rope_theta",
                                           "activation",
                                           "gated_mlp",
                                           "attention_scale",
                                           "sliding_window",
                                           "scale_attn_by_inverse_layer_idx",
                                           "qkv_bias",
                                           "o_bias",
                                           "mlp_bias"};
  std::vector<std::string> unsaid;
  for (const ConfigField& field : config_field_table()) {
    if (std::find(std::begin(kMatters), std::end(kMatters), field.name) == std::end(kMatters)) {
      continue;
    }
    // Gelu is one thing to its kernels.
    const auto is_gelu = [](const ModelConfig& c) {
      return c.activation == Activation::kGelu || c.activation == Activation::kGeluTanh;
    };
    if (field.name == "activation" && is_gelu(config) && is_gelu(read)) continue;
    const std::string text = get_field_text(config, field);
    if (text != get_field_text(read, field)) {
      unsaid.push_back(std::string(field.name) + " = " + text);
    }
  }
  // kv_head_num is a key of llmctl's, known to no loader of FasterTransformer's.
  if (config.num_key_value_heads != config.num_attention_heads) {
    unsaid.push_back("num_key_value_heads = " + std::to_string(config.num_key_value_heads));
  }
  if (config.rope_scaling != read.rope_scaling) {
    unsaid.push_back("rope_scaling = " + config.rope_scaling.kind);
  }
  return unsaid;
}

std::string write_ft_config(const ModelConfig& config, const FtConfigOptions& options) {
  if (options.model_name.find('\n') != std::string::npos) {
    throw_usage("--model-name", "must be one line");
  }
  // A narrow embedding is multiplied out: the files are those of a model without it.
  ModelConfig c = config;
  if (c.embed_dim() != c.hidden_size) {
    c.word_embed_proj_dim = 0;
    c.tie_word_embeddings = false;
  }
  std::string text = write_main_section(c, options);
  if (options.exact) return text;
  return text +
         write_own_section(c, read_sections(Ini::parse(text, "config.ini"), true, "config.ini"));
}

}  // namespace llmctl::reshard
