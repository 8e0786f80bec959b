// The pickled `args` of a Megatron checkpoint that is to be written.
#include <algorithm>

#include "reshard/megatron.h"

namespace llmctl::reshard {

using formats::MegatronArg;
using formats::PythonName;

namespace {

constexpr auto kNone = std::monostate{};

std::string join(const std::vector<int64_t>& numbers) {
  std::string text;
  for (const int64_t number : numbers) text += (text.empty() ? "" : ",") + std::to_string(number);
  return text;
}

/// Layers of each stage, virtual stages together.
std::vector<int64_t> stage_layers(const MegatronTarget& target) {
  std::vector<int64_t> stages(static_cast<size_t>(target.pp), 0);
  for (size_t chunk = 0; chunk < target.layers.size(); ++chunk) {
    stages[chunk % static_cast<size_t>(target.pp)] += target.layers[chunk];
  }
  return stages;
}

}  // namespace

std::vector<std::pair<std::string, MegatronArg>> megatron_args(const ModelConfig& c,
                                                               const MegatronTarget& target,
                                                               DType dtype, bool all) {
  std::vector<std::pair<std::string, MegatronArg>> args;
  const auto add = [&](const char* name, MegatronArg value) {
    args.emplace_back(name, std::move(value));
  };
  const std::vector<int64_t> stages = stage_layers(target);
  const bool is_even =
      std::adjacent_find(stages.begin(), stages.end(), std::not_equal_to<>()) == stages.end();
  // Megatron's own name before checkpoint_version 3.0, and what it then compares.
  if (target.version < 3.0) add("model_parallel_size", target.tp);
  add("tensor_model_parallel_size", target.tp);
  add("pipeline_model_parallel_size", target.pp);
  add("transformer_pipeline_model_parallel_size", target.pp);
  add("virtual_pipeline_model_parallel_size",
      target.virtual_pp > 1 ? MegatronArg(target.virtual_pp) : kNone);
  add("num_layers_per_virtual_pipeline_stage",
      target.virtual_pp > 1 ? MegatronArg(target.layers.front()) : kNone);
  add("world_size", target.tp * target.pp);
  add("data_parallel_size", int64_t{1});
  add("padded_vocab_size", target.padded_vocab_size);
  if (c.localized_filtering) {
    add("pipeline_model_parallel_method", std::string(is_even ? "uniform" : "block"));
    add("pipeline_model_parallel_blocks", is_even ? kNone : MegatronArg(join(stages)));
    add("pipeline_blocks", stages);
  }
  if (target.tp == 1) add("sequence_parallel", false);
  if (!all) {
    if (c.true_vocab_size != 0) add("vocab_size", c.true_vocab_size);
    return args;
  }

  add("sequence_parallel", false);
  add("expert_model_parallel_size", int64_t{1});
  add("num_experts", kNone);
  add("num_layers", c.num_hidden_layers);
  add("encoder_num_layers", c.num_hidden_layers);
  add("hidden_size", c.hidden_size);
  add("ffn_hidden_size", c.intermediate_size);
  add("num_attention_heads", c.num_attention_heads);
  add("kv_channels", c.head_dim);
  const bool grouped = c.num_key_value_heads != c.num_attention_heads;
  add("group_query_attention", grouped);
  add("num_query_groups", grouped ? c.num_key_value_heads : int64_t{1});
  const int64_t length = c.max_position_embeddings > 0 ? c.max_position_embeddings : 2048;
  add("max_position_embeddings", length);
  add("seq_length", length);
  add("encoder_seq_length", length);
  add("vocab_size", c.true_vocab_size != 0 ? c.true_vocab_size : c.vocab_size);
  add("make_vocab_size_divisible_by", int64_t{128});
  add("untie_embeddings_and_output_weights", !c.tie_word_embeddings);
  const bool is_rotary = c.position == PositionKind::kRotary;
  add("position_embedding_type",
      std::string(is_rotary                            ? "rope"
                  : c.position == PositionKind::kAlibi ? "alibi"
                  : c.position == PositionKind::kNone  ? "none"
                                                       : "learned_absolute"));
  add("add_position_embedding", c.position == PositionKind::kLearned);
  add("use_rotary_position_embeddings", is_rotary);
  if (is_rotary) {
    add("rotary_percent", static_cast<double>(c.rotary_dim) / static_cast<double>(c.head_dim));
    add("rotary_base", c.rope_theta == static_cast<double>(static_cast<int64_t>(c.rope_theta))
                           ? MegatronArg(static_cast<int64_t>(c.rope_theta))
                           : MegatronArg(c.rope_theta));
    add("rotary_interleaved", c.rotary_pairing == RotaryPairing::kInterleaved);
    if (c.rope_scaling.kind == "llama3") {
      add("use_rope_scaling", true);
      add("rope_scaling_factor", c.rope_scaling.factor);
    } else if (c.rope_scaling.kind == "linear") {
      add("rotary_seq_len_interpolation_factor", c.rope_scaling.factor);
    }
  }
  const std::string norm = c.norm == NormKind::kRmsNorm ? "RMSNorm" : "LayerNorm";
  add("normalization", norm);
  if (c.localized_filtering) {
    add("norm_dtype", norm);
    add("use_lf_gate", true);
    add("lf_conv2d_group", c.lf_groups);
    add("lf_conv2d_num_pad", int64_t{1});
  }
  add("norm_epsilon", c.norm_eps);
  add("layernorm_epsilon", c.norm_eps);
  add("apply_layernorm_1p", false);
  add("apply_residual_connection_post_layernorm", c.residual_from_norm);
  add("embed_layernorm", c.embedding_norm);
  add("swiglu", c.gated_mlp && c.activation == Activation::kSilu);
  add("squared_relu", false);
  add("openai_gelu", false);
  add("onnx_safe_gelu", false);
  add("bias_gelu_fusion", c.activation == Activation::kGeluTanh);
  const bool has_bias = c.o_bias || c.mlp_bias;
  add("add_bias_linear", has_bias);
  add("disable_bias_linear", !has_bias);
  add("add_qkv_bias", c.qkv_bias);
  add("hidden_dropout", 0.0);
  add("attention_dropout", 0.0);
  add("apply_query_key_layer_scaling", false);
  add("fp16", dtype == DType::F16);
  add("bf16", dtype == DType::BF16);
  add("params_dtype", PythonName{"torch", dtype == DType::F16    ? "float16"
                                          : dtype == DType::BF16 ? "bfloat16"
                                                                 : "float32"});
  add("transformer_impl", std::string("local"));
  add("use_mcore_models", target.dialect.core);
  add("tokenizer_type", kNone);
  add("vocab_file", kNone);
  add("tokenizer_model", kNone);
  add("consumed_train_samples", int64_t{0});
  add("consumed_valid_samples", int64_t{0});
  return args;
}

}  // namespace llmctl::reshard
