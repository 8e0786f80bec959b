#include "runtime/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "formats/core/error.h"
#include "kernels/quantized.h"
#include "runtime/layout.h"

namespace llmctl::runtime {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

std::vector<float> floats(int64_t rows, int64_t columns) {
  return std::vector<float>(static_cast<size_t>(rows * columns));
}

kernels::ActivationOp activation_op(Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return kernels::ActivationOp::kRelu;
    case Activation::kGelu:
      return kernels::ActivationOp::kGelu;
    case Activation::kGeluTanh:
      return kernels::ActivationOp::kGeluTanh;
    case Activation::kSilu:
      return kernels::ActivationOp::kSilu;
    case Activation::kQuickGelu:
      return kernels::ActivationOp::kQuickGelu;
  }
  throw Error(ErrorCode::kInternal, "an activation without a kernel");
}

/// Localized filtering carries the normed input and the first convolution's output of a token.
int64_t state_width(const ModelConfig& config) {
  return config.localized_filtering ? config.hidden_size + config.hidden_size / 2 : 0;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

void check_shape(const std::string& name, const std::vector<int64_t>& shape,
                 const std::vector<int64_t>& expected) {
  if (shape == expected) return;
  throw Error(ErrorCode::kInternal,
              "loaded as " + shape_text(shape) + ", the config says " + shape_text(expected), name);
}

}  // namespace

std::vector<float> alibi_slopes(int64_t num_heads) {
  int64_t power = 1;
  while (power * 2 <= num_heads) power *= 2;
  std::vector<float> slopes;
  const double base = std::exp2(-8.0 / static_cast<double>(power));
  for (int64_t i = 1; i <= power; ++i) {
    slopes.push_back(static_cast<float>(std::pow(base, static_cast<double>(i))));
  }
  const double between = std::exp2(-4.0 / static_cast<double>(power));
  for (int64_t i = 1; static_cast<int64_t>(slopes.size()) < num_heads; i += 2) {
    slopes.push_back(static_cast<float>(std::pow(between, static_cast<double>(i))));
  }
  return slopes;
}

Decoder::Decoder(const ModelConfig& config, const RankPlace& place, reshard::RankWeights weights,
                 ThreadPool& pool, int64_t max_tokens, int64_t page_size, DType kv_dtype,
                 kernels::Activations activations)
    : config_(config),
      place_(place),
      weights_(std::move(weights)),
      pool_(pool),
      activations_(activations),
      cache_(place.end_layer - place.first_layer, local_num_key_value_heads(config, place.tp),
             config.head_dim, page_size, state_width(config), kv_dtype),
      local_heads_(config.num_attention_heads / place.tp),
      local_kv_heads_(local_num_key_value_heads(config, place.tp)),
      local_ffn_(config.intermediate_size / place.tp),
      local_hidden_(ceil_div(config.hidden_size, place.tp)),
      local_vocab_(ceil_div(config.vocab_size, place.tp)),
      local_filter_(ceil_div(config.hidden_size / 2, place.tp)) {
  if (config.position == PositionKind::kRotary) rope_.emplace(config);
  if (config.position == PositionKind::kAlibi) {
    const std::vector<float> all = alibi_slopes(config.num_attention_heads);
    const auto first = all.begin() + place.tp_rank * local_heads_;
    slopes_.assign(first, first + local_heads_);
  }
  bind_weights();
  allocate(max_tokens);
}

Decoder::~Decoder() = default;

Decoder::Matrix Decoder::find_matrix(const std::string& name, int64_t rows, int64_t columns) const {
  const auto* tensor = weights_.find(name);
  if (tensor == nullptr) return {};
  check_shape(name, tensor->shape, {rows, columns});
  return {tensor->matrix(), find_vector(name + "_b", rows)};
}

Decoder::Matrix Decoder::get_matrix(const std::string& name, int64_t rows, int64_t columns) const {
  const Matrix matrix = find_matrix(name, rows, columns);
  if (matrix.empty()) throw Error(ErrorCode::kInternal, "weight was not loaded", name);
  return matrix;
}

const float* Decoder::find_vector(const std::string& name, int64_t size) const {
  const auto* tensor = weights_.find(name);
  if (tensor == nullptr) return nullptr;
  check_shape(name, tensor->shape, {size});
  if (tensor->dtype != DType::F32) throw Error(ErrorCode::kInternal, "expected as F32", name);
  return static_cast<const float*>(tensor->data);
}

Decoder::Norm Decoder::find_norm(const std::string& name) const {
  return {find_vector(name, config_.hidden_size), find_vector(name + "_b", config_.hidden_size)};
}

void Decoder::bind_weights() {
  const int64_t hidden = config_.hidden_size;
  const int64_t width = config_.embed_dim();
  const bool narrow = width != hidden;
  const std::string embed_name = narrow ? "embed_narrow" : "embed";
  if (place_.is_first_stage()) {
    embed_ = get_matrix(embed_name, local_vocab_, width);
    if (narrow) project_in_ = get_matrix("project_in", hidden, width);
    if (config_.position == PositionKind::kLearned) {
      pos_ = get_matrix("pos", config_.max_position_embeddings, hidden);
    }
    if (config_.embedding_norm) embed_norm_ = find_norm("embed_norm");
  }
  if (place_.is_last_stage()) {
    if (config_.final_norm) final_norm_ = find_norm("final_norm");
    if (narrow) project_out_ = get_matrix("project_out", width, hidden);
    head_ = find_matrix(narrow ? "head_narrow" : "head", local_vocab_, width);
    if (head_.empty()) head_ = get_matrix(embed_name, local_vocab_, width);
    head_.bias = find_vector("head_bias", local_vocab_);
  }
  const int64_t d = config_.head_dim;
  for (int64_t l = place_.first_layer; l < place_.end_layer; ++l) {
    const std::string prefix = "layers." + std::to_string(l) + ".";
    Layer layer;
    layer.norm1 = find_norm(prefix + "norm1");
    layer.norm2 = find_norm(prefix + "norm2");
    if (config_.localized_filtering) {
      const int64_t groups = config_.lf_groups, half = hidden / 2;
      layer.conv1 = {get_matrix(prefix + "conv1", local_filter_, 2 * (hidden / groups)), hidden,
                     half, 0};
      layer.conv2 = {get_matrix(prefix + "conv2", local_hidden_, 2 * (half / groups)), half, hidden,
                     hidden};
      layer.lf_norm = find_norm(prefix + "lf_norm");
      layer.qk = get_matrix(prefix + "qk", (local_heads_ + local_kv_heads_) * d, hidden);
      layer.v = get_matrix(prefix + "v", local_kv_heads_ * d, hidden);
    } else {
      layer.qkv = get_matrix(prefix + "qkv", (local_heads_ + 2 * local_kv_heads_) * d, hidden);
    }
    layer.o = get_matrix(prefix + "o", local_hidden_, config_.num_attention_heads * d);
    layer.up = config_.gated_mlp ? get_matrix(prefix + "gate_up", 2 * local_ffn_, hidden)
                                 : get_matrix(prefix + "up", local_ffn_, hidden);
    layer.down = get_matrix(prefix + "down", local_hidden_, config_.intermediate_size);
    layers_.push_back(layer);
  }
}

void Decoder::allocate(int64_t max_tokens) {
  max_tokens_ = max_tokens;
  const int64_t tp = place_.tp;
  const int64_t hidden = config_.hidden_size;
  const int64_t width = config_.embed_dim();
  const int64_t heads_wide = config_.num_attention_heads * config_.head_dim;
  x_ = floats(max_tokens, hidden);
  h_ = floats(max_tokens, hidden);
  // A gather of one row lands in place, padding included.
  branch_ = floats(max_tokens, tp * local_hidden_);
  second_ = floats(max_tokens, std::max(tp * local_hidden_, width));
  qkv_ = floats(max_tokens, (local_heads_ + 2 * local_kv_heads_) * config_.head_dim);
  attention_ = floats(max_tokens, heads_wide);
  inner_ = floats(max_tokens, config_.intermediate_size);
  if (config_.gated_mlp) local_ = floats(max_tokens, 2 * local_ffn_);
  if (config_.localized_filtering) {
    window_ = floats(max_tokens, 2 * hidden);
    filter_ = floats(max_tokens, tp * local_filter_);
  }
  const int64_t most_tokens = std::max(max_tokens, kMaxLogitRows);
  const int64_t widest_input = std::max({2 * hidden, width, heads_wide, config_.intermediate_size});
  packed_ = floats(1, std::max(kernels::linear_scratch_floats(most_tokens, widest_input),
                               kernels::quantized_scratch_floats(most_tokens, widest_input)));
  if (tp > 1) {
    const int64_t widest = std::max({local_heads_ * config_.head_dim, local_ffn_, local_hidden_,
                                     place_.is_first_stage() ? width : 0});
    gathered_ = floats(max_tokens * tp, widest);
    rows_ = floats(max_tokens, widest);
  }
  if (rope_) {
    cos_ = floats(max_tokens, rope_->num_pairs());
    sin_ = floats(max_tokens, rope_->num_pairs());
  }
  if (place_.is_last_stage()) {
    narrow_rows_ = floats(kMaxLogitRows, std::max(hidden, width));
    logits_ = floats(kMaxLogitRows, tp * local_vocab_);
    if (tp > 1) {
      const auto needed = static_cast<size_t>(kMaxLogitRows * local_vocab_);
      rows_.resize(std::max(rows_.size(), needed));
      gathered_.resize(std::max(gathered_.size(), needed * static_cast<size_t>(tp)));
    }
  }
}

void Decoder::normalize(float* y, const float* x, const Norm& norm) {
  const auto eps = static_cast<float>(config_.norm_eps);
  if (config_.norm == NormKind::kRmsNorm) {
    kernels::rms_norm(y, x, norm.weight, num_tokens_, config_.hidden_size, eps, pool_);
  } else {
    kernels::layer_norm(y, x, norm.weight, norm.bias, num_tokens_, config_.hidden_size, eps, pool_);
  }
}

void Decoder::multiply(float* y, const float* x, const Matrix& m, int64_t y_stride) {
  multiply_rows(y, x, m, num_tokens_, y_stride);
}

void Decoder::multiply_rows(float* y, const float* x, const Matrix& m, int64_t num_rows,
                            int64_t y_stride) {
  if (m.quantization) {
    kernels::quantized_linear(y, x, m, m.bias, num_rows, y_stride, packed_.data(), pool_);
  } else {
    kernels::linear(y, x, m, m.bias, num_rows, y_stride, activations_for(m), packed_.data(), pool_);
  }
}

void Decoder::gather_columns(float* y, const float* local, int64_t num_rows, int64_t local_columns,
                             int64_t columns, const RankComm& comm) {
  const size_t bytes = static_cast<size_t>(num_rows * local_columns) * sizeof(float);
  if (num_rows == 1) {
    comm.tp->all_gather(y, local, bytes);
    return;
  }
  comm.tp->all_gather(gathered_.data(), local, bytes);
  for (int64_t r = 0; r < place_.tp; ++r) {
    const int64_t first = r * local_columns;
    const int64_t count = std::min(local_columns, columns - first);
    if (count <= 0) break;
    const float* from = gathered_.data() + r * num_rows * local_columns;
    for (int64_t t = 0; t < num_rows; ++t) {
      std::memcpy(y + t * columns + first, from + t * local_columns,
                  static_cast<size_t>(count) * sizeof(float));
    }
  }
}

void Decoder::multiply_gathered(float* y, const float* x, const Matrix& m, int64_t num_rows,
                                int64_t columns, const RankComm& comm) {
  float* local = place_.tp == 1 ? y : rows_.data();
  multiply_rows(local, x, m, num_rows, m.rows);
  if (place_.tp > 1) gather_columns(y, local, num_rows, m.rows, columns, comm);
}

void Decoder::embed(const Step& step, const RankComm& comm) {
  const int64_t width = config_.embed_dim();
  const int64_t first_row = place_.tp_rank * local_vocab_;
  float* target = project_in_.empty() ? x_.data() : second_.data();
  float* local = place_.tp == 1 ? target : rows_.data();
  kernels::embedding(local, embed_, step.ids.data(), first_row, num_tokens_, pool_);
  if (place_.tp > 1) {
    // Every row has one owner; picking it keeps its bits, which adding the others' zeros may not.
    comm.tp->all_gather(gathered_.data(), local,
                        static_cast<size_t>(num_tokens_ * width) * sizeof(float));
    for (int64_t t = 0; t < num_tokens_; ++t) {
      const int64_t owner = step.ids[static_cast<size_t>(t)] / local_vocab_;
      std::memcpy(target + t * width, gathered_.data() + (owner * num_tokens_ + t) * width,
                  static_cast<size_t>(width) * sizeof(float));
    }
  }
  if (!project_in_.empty()) multiply(x_.data(), target, project_in_, config_.hidden_size);
  if (!pos_.empty()) {
    kernels::embedding(h_.data(), pos_, step.positions.data(), 0, num_tokens_, pool_);
    kernels::add(x_.data(), h_.data(), num_tokens_ * config_.hidden_size, pool_);
  }
  if (config_.embedding_norm) {
    normalize(h_.data(), x_.data(), embed_norm_);
    x_.swap(h_);
  }
}

void Decoder::project_qkv(const float* x, int64_t layer, const Step& step, const RankComm& comm) {
  const Layer& weights = layers_[static_cast<size_t>(layer)];
  if (!config_.localized_filtering) {
    return multiply(qkv_.data(), x, weights.qkv, weights.qkv.rows);
  }
  const int64_t stride = weights.qk.rows + weights.v.rows;
  multiply(qkv_.data() + weights.qk.rows, x, weights.v, stride);
  multiply(qkv_.data(), filter(x, layer, step, comm), weights.qk, stride);
}

void Decoder::turn(float* heads, int64_t num_heads) {
  const int64_t stride = (local_heads_ + 2 * local_kv_heads_) * config_.head_dim;
  const bool interleaved = config_.rotary_pairing == RotaryPairing::kInterleaved;
  const auto kernel = config_.rope_in_bf16 ? kernels::rotary_bf16 : kernels::rotary;
  kernel(heads, cos_.data(), sin_.data(), num_tokens_, num_heads, config_.head_dim,
         config_.rotary_dim, interleaved, stride, pool_);
}

void Decoder::attend(const float* x, int64_t layer, const Step& step, const RankComm& comm) {
  const Layer& weights = layers_[static_cast<size_t>(layer)];
  const int64_t d = config_.head_dim;
  const int64_t stride = (local_heads_ + 2 * local_kv_heads_) * d;
  project_qkv(x, layer, step, comm);
  float* q = qkv_.data();
  float* k = q + local_heads_ * d;
  const float* v = k + local_kv_heads_ * d;
  if (rope_) {
    turn(q, local_heads_);
    turn(k, local_kv_heads_);
  }
  kernels::AttentionArgs args;
  args.kv = cache_.layer(layer);
  kernels::kv_append(args.kv, k, v, stride, step.block_tables.data(), step.positions.data(),
                     num_tokens_, pool_);
  const int64_t global_layer = place_.first_layer + layer;
  double scale = config_.attention_scale != 0.0 ? config_.attention_scale
                                                : 1.0 / std::sqrt(static_cast<double>(d));
  if (config_.scale_attn_by_inverse_layer_idx) scale /= static_cast<double>(global_layer + 1);
  args.q = q;
  args.q_stride = stride;
  args.block_tables = step.block_tables.data();
  args.positions = step.positions.data();
  args.num_tokens = num_tokens_;
  args.num_heads = local_heads_;
  args.scale = static_cast<float>(scale);
  args.alibi_slopes = slopes_.empty() ? nullptr : slopes_.data();
  args.window = global_layer >= config_.first_sliding_layer ? config_.sliding_window : 0;
  float* local = place_.tp == 1 ? attention_.data() : rows_.data();
  kernels::attention(local, args, pool_);
  if (place_.tp > 1) {
    gather_columns(attention_.data(), local, num_tokens_, local_heads_ * d,
                   config_.num_attention_heads * d, comm);
  }
  multiply_gathered(branch_.data(), attention_.data(), weights.o, num_tokens_, config_.hidden_size,
                    comm);
}

void Decoder::run_mlp(const float* x, const Layer& weights, const RankComm& comm) {
  const kernels::ActivationOp op = activation_op(config_.activation);
  float* local = place_.tp == 1 ? inner_.data() : rows_.data();
  if (config_.gated_mlp) {
    multiply(local_.data(), x, weights.up, weights.up.rows);
    kernels::gated_activation(local, local_.data(), num_tokens_, local_ffn_, op, pool_);
  } else {
    multiply(local, x, weights.up, weights.up.rows);
    kernels::activation(local, num_tokens_ * local_ffn_, op, pool_);
  }
  if (place_.tp > 1) {
    gather_columns(inner_.data(), local, num_tokens_, local_ffn_, config_.intermediate_size, comm);
  }
  multiply_gathered(second_.data(), inner_.data(), weights.down, num_tokens_, config_.hidden_size,
                    comm);
}

void Decoder::run_layer(int64_t layer, const Step& step, const RankComm& comm) {
  const Layer& weights = layers_[static_cast<size_t>(layer)];
  const int64_t count = num_tokens_ * config_.hidden_size;
  const auto normed = [&](const Norm& norm) {
    normalize(h_.data(), x_.data(), norm);
    return h_.data();
  };

  if (config_.residual != ResidualKind::kSequential) {
    const float* input = normed(weights.norm1);
    attend(input, layer, step, comm);
    if (config_.residual == ResidualKind::kParallelTwoNorms) input = normed(weights.norm2);
    run_mlp(input, weights, comm);
    kernels::add(x_.data(), branch_.data(), count, pool_);
    kernels::add(x_.data(), second_.data(), count, pool_);
    return;
  }

  // One half of the layer: x = residual + f(norm x), or x = norm(x + f(x)).
  const auto half = [&](const Norm& norm, const float* branch, const auto& f) {
    f(config_.pre_norm ? normed(norm) : x_.data());
    if (config_.residual_from_norm) x_.swap(h_);
    kernels::add(x_.data(), branch, count, pool_);
    if (!config_.pre_norm) {
      normed(norm);
      x_.swap(h_);
    }
  };
  half(weights.norm1, branch_.data(), [&](const float* in) { attend(in, layer, step, comm); });
  half(weights.norm2, second_.data(), [&](const float* in) { run_mlp(in, weights, comm); });
}

void Decoder::compute(const Step& step, const RankComm& comm) {
  num_tokens_ = static_cast<int64_t>(step.ids.size());
  if (num_tokens_ > max_tokens_) throw Error(ErrorCode::kInternal, "a step of too many tokens");
  const size_t boundary_bytes =
      static_cast<size_t>(num_tokens_ * config_.hidden_size) * sizeof(float);
  if (place_.is_first_stage()) {
    embed(step, comm);
  } else {
    comm.world->recv(x_.data(), boundary_bytes, place_.rank() - place_.tp);
  }
  if (rope_) {
    for (int64_t t = 0; t < num_tokens_; ++t) {
      const auto i = static_cast<size_t>(t);
      rope_->fill(cos_.data() + t * rope_->num_pairs(), sin_.data() + t * rope_->num_pairs(),
                  step.positions[i], step.lengths[i]);
    }
  }
  for (int64_t l = 0; l < static_cast<int64_t>(layers_.size()); ++l) run_layer(l, step, comm);
}

void Decoder::hand_over(const RankComm& comm) {
  if (place_.is_last_stage()) return;
  comm.world->send(x_.data(),
                   static_cast<size_t>(num_tokens_ * config_.hidden_size) * sizeof(float),
                   place_.rank() + place_.tp);
}

const float* Decoder::logits(std::span<const int32_t> rows, const RankComm& comm) {
  const auto num_rows = static_cast<int64_t>(rows.size());
  if (num_rows > kMaxLogitRows) throw Error(ErrorCode::kInternal, "too many rows of logits");
  const int64_t hidden = config_.hidden_size;
  for (int64_t i = 0; i < num_rows; ++i) {
    std::memcpy(narrow_rows_.data() + i * hidden, x_.data() + rows[static_cast<size_t>(i)] * hidden,
                static_cast<size_t>(hidden) * sizeof(float));
  }
  const int64_t tokens_of_pass = num_tokens_;
  num_tokens_ = num_rows;
  const float* input = narrow_rows_.data();
  if (config_.final_norm) {
    normalize(h_.data(), input, final_norm_);
    input = h_.data();
  }
  if (!project_out_.empty()) {
    multiply(second_.data(), input, project_out_, project_out_.rows);
    input = second_.data();
  }
  num_tokens_ = tokens_of_pass;
  multiply_gathered(logits_.data(), input, head_, num_rows, config_.vocab_size, comm);
  return logits_.data();
}

}  // namespace llmctl::runtime
