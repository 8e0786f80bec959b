#include "runtime/cuda/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>

#include "formats/core/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/prefill_attention.h"
#include "kernels/cuda/rotary_kv.h"
#include "kernels/cuda/tiled_linear.h"
#include "runtime/decoder.h"

namespace llmctl::runtime::cuda {
namespace {

namespace ops = kernels::cuda;

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }
/// Kernels read eight elements at a time.
int64_t to_eight(int64_t n) { return ceil_div(n, 8) * 8; }

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

ops::RotaryPairing pairing_of(const ModelConfig& config) {
  if (config.position != PositionKind::kRotary) return ops::RotaryPairing::kNone;
  return config.rotary_pairing == RotaryPairing::kInterleaved ? ops::RotaryPairing::kInterleaved
                                                              : ops::RotaryPairing::kHalves;
}

/// Bytes that decode_attention needs for any number of sequences up to `max_tokens`.
size_t attention_scratch_bytes(const DeviceSizes& sizes, int64_t max_tokens, int num_sms) {
  size_t most = 0;
  for (int64_t n = 1; n <= max_tokens; ++n) {
    const auto heads = static_cast<int32_t>(sizes.local_heads);
    const int32_t splits =
        ops::decode_attention_splits(n, heads, static_cast<int32_t>(sizes.kv_heads), num_sms);
    most = std::max(most, ops::decode_attention_scratch_bytes(
                              n, heads, static_cast<int32_t>(sizes.padded_dim), splits));
  }
  return most;
}

}  // namespace

DeviceSizes::DeviceSizes(const ModelConfig& config, const RankPlace& place)
    : hidden(config.hidden_size),
      width(config.embed_dim()),
      heads(config.num_attention_heads),
      kv_heads(local_num_key_value_heads(config, place.tp)),
      local_heads(config.num_attention_heads / place.tp),
      head_dim(config.head_dim),
      padded_dim(to_eight(config.head_dim)),
      ffn(config.intermediate_size / place.tp),
      padded_ffn(to_eight(ffn)),
      local_hidden(ceil_div(hidden, place.tp)),
      local_vocab(ceil_div(config.vocab_size, place.tp)) {}

uint64_t device_weight_bytes(const ModelConfig& config, const RankPlace& place) {
  const DeviceSizes s(config, place);
  const int64_t layers = place.end_layer - place.first_layer;
  int64_t elements = layers * (s.qkv_width() * s.hidden + s.local_hidden * s.heads_width() +
                               (config.gated_mlp ? 2 : 1) * s.padded_ffn * s.hidden +
                               s.local_hidden * place.tp * s.padded_ffn);
  const int64_t table = s.local_vocab * s.width;
  const int64_t projection = s.width != s.hidden ? s.width * s.hidden : 0;
  if (place.is_first_stage()) {
    elements += table + projection;
    if (config.position == PositionKind::kLearned) {
      elements += config.max_position_embeddings * s.hidden;
    }
  }
  if (place.is_last_stage()) {
    elements += projection;
    if (!config.tie_word_embeddings || !place.is_first_stage()) elements += table;
  }
  return static_cast<uint64_t>(elements) * 2;
}

uint64_t device_scratch_bytes(const ModelConfig& config, const RankPlace& place,
                              int64_t max_tokens) {
  const DeviceSizes s(config, place);
  // In F32 x twice; in 16 bits what lies between products, gathered over the ranks.
  int64_t per_token = 8 * s.hidden + 2 * s.hidden + 2 * s.qkv_width() + 2 * s.heads_width() +
                      2 * place.tp * s.padded_ffn;
  if (config.gated_mlp) per_token += 4 * s.padded_ffn;
  if (place.tp > 1) per_token += 4 * std::max(s.local_hidden, s.padded_ffn);
  const int64_t logits = RankModel::kMaxLogitRows * (8 * s.hidden + 4 * s.local_vocab);
  constexpr int64_t kAttention = int64_t{32} << 20;  // partial results and block tables, about
  return static_cast<uint64_t>(per_token * max_tokens + logits + kAttention) +
         Blas::kWorkspaceBytes;
}

DeviceDecoder::DeviceDecoder(const ModelConfig& config, const RankPlace& place,
                             const reshard::RankWeights& weights, ThreadPool& pool, int device,
                             int num_devices, DType dtype, const ModelOptions& options)
    : config_(config),
      place_(place),
      device_(device),
      dtype_(dtype),
      sizes_(config, place),
      launch_(ops::make_launch_stream(stream_.get())),
      cache_(device, num_devices, place.end_layer - place.first_layer, sizes_.kv_heads,
             sizes_.padded_dim, options.page_size, dtype, stream_),
      store_(dtype, stream_, pool),
      blas_(Blas::open()),
      arrays_(options.page_size) {
  if (config.position == PositionKind::kRotary) rope_.emplace(config);
  bind_weights(weights);
  allocate(options.max_tokens);
  store_.finish();
}

void DeviceDecoder::use_device() const { LLMCTL_CUDA_CHECK(cudaSetDevice(device_)); }

DeviceMatrix DeviceDecoder::get_matrix(const reshard::RankWeights& weights, const std::string& name,
                                       const PaddedAxis& rows, const PaddedAxis& columns,
                                       bool may_lack) {
  const auto* tensor = weights.find(name);
  if (tensor == nullptr && may_lack) return {};
  if (tensor == nullptr) throw Error(ErrorCode::kInternal, "weight was not loaded", name);
  DeviceMatrix matrix = store_.add_matrix(tensor->matrix(), rows, columns);
  if (const auto* bias = weights.find(name + "_b")) {
    matrix.bias = store_.add_vector(static_cast<const float*>(bias->data), rows);
  }
  return matrix;
}

DeviceDecoder::Norm DeviceDecoder::get_norm(const reshard::RankWeights& weights,
                                            const std::string& name) {
  const auto values = [&](const std::string& tensor_name) -> const float* {
    const auto* tensor = weights.find(tensor_name);
    return tensor != nullptr ? static_cast<const float*>(tensor->data) : nullptr;
  };
  const float* const weight = values(name);
  const float* const bias = values(name + "_b");
  Norm norm;
  norm.weight = store_.add_vector(weight, whole_axis(sizes_.hidden));
  norm.bias = store_.add_vector(bias, whole_axis(sizes_.hidden));
  norm.weight_16bit = store_.add_exact_16bit(weight, sizes_.hidden);
  norm.bias_16bit = store_.add_exact_16bit(bias, sizes_.hidden);
  norm.fuses = (weight == nullptr) == (norm.weight_16bit == nullptr) &&
               (bias == nullptr) == (norm.bias_16bit == nullptr);
  return norm;
}

void DeviceDecoder::bind_weights(const reshard::RankWeights& weights) {
  const DeviceSizes& s = sizes_;
  const bool narrow = s.width != s.hidden;
  const PaddedAxis hidden = whole_axis(s.hidden), width = whole_axis(s.width);
  const PaddedAxis vocab = whole_axis(s.local_vocab), local_hidden = whole_axis(s.local_hidden);
  const std::string embed_name = narrow ? "embed_narrow" : "embed";
  if (place_.is_first_stage()) {
    embed_ = get_matrix(weights, embed_name, vocab, width);
    if (narrow) project_in_ = get_matrix(weights, "project_in", hidden, width);
    if (config_.position == PositionKind::kLearned) {
      pos_ = get_matrix(weights, "pos", whole_axis(config_.max_position_embeddings), hidden);
    }
    if (config_.embedding_norm) embed_norm_ = get_norm(weights, "embed_norm");
  }
  if (place_.is_last_stage()) {
    if (config_.final_norm) final_norm_ = get_norm(weights, "final_norm");
    if (narrow) project_out_ = get_matrix(weights, "project_out", width, hidden);
    head_ = get_matrix(weights, narrow ? "head_narrow" : "head", vocab, width, true);
    if (head_.empty()) {
      head_ = embed_.empty() ? get_matrix(weights, embed_name, vocab, width) : embed_;
    }
    const auto* bias = weights.find("head_bias");
    head_.bias =
        bias != nullptr ? store_.add_vector(static_cast<const float*>(bias->data), vocab) : nullptr;
  }
  const PaddedAxis qkv{s.local_heads + 2 * s.kv_heads, s.head_dim, s.padded_dim};
  const PaddedAxis heads{s.heads, s.head_dim, s.padded_dim};
  const PaddedAxis up{config_.gated_mlp ? 2 : 1, s.ffn, s.padded_ffn};
  const PaddedAxis down{place_.tp, s.ffn, s.padded_ffn};
  for (int64_t l = place_.first_layer; l < place_.end_layer; ++l) {
    const std::string prefix = "layers." + std::to_string(l) + ".";
    Layer layer;
    layer.norm1 = get_norm(weights, prefix + "norm1");
    layer.norm2 = get_norm(weights, prefix + "norm2");
    layer.qkv = get_matrix(weights, prefix + "qkv", qkv, hidden);
    layer.o = get_matrix(weights, prefix + "o", local_hidden, heads);
    layer.up = get_matrix(weights, prefix + (config_.gated_mlp ? "gate_up" : "up"), up, hidden);
    layer.down = get_matrix(weights, prefix + "down", local_hidden, down);
    layers_.push_back(layer);
  }
  if (config_.position == PositionKind::kAlibi) {
    const std::vector<float> all = alibi_slopes(config_.num_attention_heads);
    slopes_ =
        store_.add_vector(all.data() + place_.tp_rank * s.local_heads, whole_axis(s.local_heads));
  }
}

void DeviceDecoder::allocate(int64_t max_tokens) {
  max_tokens_ = max_tokens;
  const DeviceSizes& s = sizes_;
  const auto memory = [](int64_t rows, int64_t columns, size_t element_bytes) {
    return DeviceMemory(static_cast<size_t>(rows * columns) * element_bytes);
  };
  const int64_t tp = place_.tp;
  x_memory_ = memory(max_tokens, s.hidden, 4);
  x2_memory_ = memory(max_tokens, s.hidden, 4);
  x_ = x_memory_.as<float>();
  x2_ = x2_memory_.as<float>();
  h_ = memory(std::max(max_tokens, kMaxLogitRows), s.hidden, 2);
  qkv_ = memory(max_tokens, s.qkv_width(), 2);
  attention_ = memory(max_tokens, s.heads_width(), 2);
  inner_ = memory(max_tokens, tp * s.padded_ffn, 2);
  if (config_.gated_mlp) gate_up_ = memory(max_tokens, 2 * s.padded_ffn, 2);
  if (s.width != s.hidden || tp > 1) {
    narrow_ = memory(std::max(max_tokens, kMaxLogitRows), s.width, 2);
  }
  attention_scratch_ = DeviceMemory(attention_scratch_bytes(s, max_tokens, launch_.num_sms));
  if (tp > 1) {
    const int64_t widest =
        std::max({2 * s.local_heads * s.padded_dim, 2 * s.padded_ffn, 4 * s.local_hidden,
                  place_.is_first_stage() ? 2 * s.width : 0});
    local_ = memory(max_tokens, widest, 1);
    const auto most = static_cast<size_t>(
        std::max(max_tokens * widest,
                 place_.is_last_stage() ? kMaxLogitRows * s.local_vocab * 4 : int64_t{0}));
    send_ = PinnedMemory(most);
    receive_ = PinnedMemory(most * static_cast<size_t>(tp));
    merged_ = PinnedMemory(most * static_cast<size_t>(tp));
  }
  if (place_.pp > 1) boundary_ = PinnedMemory(static_cast<size_t>(max_tokens * s.hidden) * 4);
  if (place_.is_last_stage()) {
    rows_ = memory(kMaxLogitRows, s.hidden, 4);
    row_ids_ = memory(kMaxLogitRows, 1, 4);
    row_ids_host_ = PinnedMemory(kMaxLogitRows * 4);
    logits_ = memory(kMaxLogitRows, s.local_vocab, 4);
    logits_host_ = PinnedMemory(static_cast<size_t>(kMaxLogitRows * tp * s.local_vocab) * 4);
  }
  std::vector<int32_t> numbers(static_cast<size_t>(std::max(max_tokens, kMaxLogitRows)));
  std::iota(numbers.begin(), numbers.end(), 0);
  row_numbers_ = store_.add_integers(numbers);
}

void DeviceDecoder::normalize(void* y, DType y_dtype, const float* x, const Norm& norm,
                              int64_t num_tokens) {
  const ops::NormArgs args{.x = x,
                           .x_dtype = DType::F32,
                           .weight = norm.weight,
                           .bias = norm.bias,
                           .weight_dtype = DType::F32,
                           .num_tokens = num_tokens,
                           .hidden_size = sizes_.hidden,
                           .eps = static_cast<float>(config_.norm_eps)};
  if (config_.norm == NormKind::kRmsNorm) {
    ops::rms_norm(y, y_dtype, args, launch_);
  } else {
    ops::layer_norm(y, y_dtype, args, launch_);
  }
}

DeviceDecoder::Input DeviceDecoder::normed(const Norm& norm) {
  if (num_tokens_ == 1 && norm.fuses) return {x_, DType::F32, &norm};
  normalize(h_.data(), dtype_, x_, norm, num_tokens_);
  return {h_.data(), dtype_};
}

void DeviceDecoder::multiply(void* y, DType y_dtype, const DeviceMatrix& matrix, const Input& input,
                             int64_t num_tokens, const Finish& finish) {
  ops::LinearArgs args{.x = input.x,
                       .x_dtype = input.dtype,
                       .w = matrix.data,
                       .w_dtype = dtype_,
                       .bias = matrix.bias,
                       .bias_dtype = DType::F32,
                       .residual = finish.residual,
                       .num_tokens = num_tokens,
                       .n = finish.gated ? matrix.rows / 2 : matrix.rows,
                       .k = matrix.columns,
                       .gated = finish.gated,
                       .activated = finish.activated,
                       .activation = activation_op(config_.activation)};
  if (input.norm != nullptr) {
    args.norm =
        config_.norm == NormKind::kRmsNorm ? ops::NormKind::kRmsNorm : ops::NormKind::kLayerNorm;
    args.norm_weight = input.norm->weight_16bit;
    args.norm_bias = input.norm->bias_16bit;
    args.norm_eps = static_cast<float>(config_.norm_eps);
  }
  if (num_tokens <= ops::kMaxLinearTokens) return ops::linear(y, y_dtype, args, launch_);
  const bool accumulates = finish.residual != nullptr;  // and then it is y
  if (blas_ != nullptr && blas_->multiply(y, y_dtype, input.x, matrix.data, dtype_, num_tokens,
                                          matrix.rows, matrix.columns, accumulates, stream_)) {
    return ops::add_bias(y, y_dtype, matrix.bias, num_tokens, matrix.rows, finish.activated,
                         args.activation, launch_);
  }
  ops::tiled_linear(y, y_dtype, args, launch_);
}

const char* DeviceDecoder::gather_on_host(const void* local, size_t bytes, const RankComm& comm) {
  copy_to_host(send_.data(), local, bytes, stream_);
  stream_.synchronize();
  comm.tp->all_gather(receive_.data(), send_.data(), bytes);
  return receive_.as<char>();
}

void DeviceDecoder::gather_columns(void* y, const void* local, DType dtype, int64_t num_rows,
                                   int64_t local_columns, int64_t columns, const RankComm& comm) {
  const size_t width = dtype_bytes(dtype);
  const size_t local_bytes = static_cast<size_t>(local_columns) * width;
  const size_t row_bytes = static_cast<size_t>(columns) * width;
  const size_t rank_bytes = static_cast<size_t>(num_rows) * local_bytes;
  // The copy from merged_ that came before is done: gather_on_host waits for the stream.
  const char* const all = gather_on_host(local, rank_bytes, comm);
  for (size_t r = 0; r < static_cast<size_t>(place_.tp); ++r) {
    const size_t first = r * local_bytes;
    if (first >= row_bytes) break;
    const size_t count = std::min(local_bytes, row_bytes - first);
    for (size_t t = 0; t < static_cast<size_t>(num_rows); ++t) {
      std::memcpy(merged_.as<char>() + t * row_bytes + first,
                  all + r * rank_bytes + t * local_bytes, count);
    }
  }
  copy_to_device(y, merged_.data(), static_cast<size_t>(num_rows) * row_bytes, stream_);
}

void DeviceDecoder::embed(const Step& step, const RankComm& comm) {
  const DeviceSizes& s = sizes_;
  const bool narrow = !project_in_.empty(), split = place_.tp > 1;
  ops::EmbeddingArgs args{.table = embed_.data,
                          .dtype = dtype_,
                          .ids = arrays_.ids,
                          .first_row = place_.tp_rank * s.local_vocab,
                          .num_rows = s.local_vocab,
                          .num_tokens = num_tokens_,
                          .width = s.width};
  if (!narrow && !split) {
    if (!pos_.empty()) {
      args.position_table = pos_.data;
      args.positions = arrays_.positions;
    }
    ops::embedding(x_, DType::F32, args, launch_);
  } else {
    ops::embedding(split ? local_.data() : narrow_.data(), dtype_, args, launch_);
    if (split) {
      // Every row has one owner; the others have zeros.
      const size_t row_bytes = static_cast<size_t>(s.width) * 2;
      const size_t rank_bytes = static_cast<size_t>(num_tokens_) * row_bytes;
      const char* const all = gather_on_host(local_.data(), rank_bytes, comm);
      for (size_t t = 0; t < static_cast<size_t>(num_tokens_); ++t) {
        const auto owner = static_cast<size_t>(step.ids[t] / s.local_vocab);
        std::memcpy(merged_.as<char>() + t * row_bytes, all + owner * rank_bytes + t * row_bytes,
                    row_bytes);
      }
      copy_to_device(narrow_.data(), merged_.data(), rank_bytes, stream_);
    }
    if (narrow) {
      multiply(x_, DType::F32, project_in_, {narrow_.data(), dtype_}, num_tokens_, {});
    } else {
      ops::convert(x_, DType::F32, narrow_.data(), dtype_, num_tokens_ * s.hidden, launch_);
    }
    if (!pos_.empty()) {
      ops::embedding(x2_, DType::F32,
                     {.table = pos_.data,
                      .dtype = dtype_,
                      .ids = arrays_.positions,
                      .num_rows = pos_.rows,
                      .num_tokens = num_tokens_,
                      .width = s.hidden},
                     launch_);
      ops::add(x_, x2_, DType::F32, num_tokens_ * s.hidden, launch_);
    }
  }
  if (config_.embedding_norm) normalize(x_, DType::F32, x_, embed_norm_, num_tokens_);
}

void DeviceDecoder::attend(const Input& input, int64_t layer, const RankComm& comm) {
  const DeviceSizes& s = sizes_;
  multiply(qkv_.data(), dtype_, layers_[static_cast<size_t>(layer)].qkv, input, num_tokens_, {});
  const auto* const q = qkv_.as<char>();
  const ops::DevicePagedKv kv = cache_.layer(layer);
  const ops::DeviceBlockTables tables{.pages = arrays_.tables, .stride = arrays_.table_stride};
  ops::rotary_kv({.q = qkv_.data(),
                  .k = q + s.local_heads * s.padded_dim * 2,
                  .v = q + (s.local_heads + s.kv_heads) * s.padded_dim * 2,
                  .q_stride = s.qkv_width(),
                  .kv_stride = s.qkv_width(),
                  .num_tokens = num_tokens_,
                  .num_heads = static_cast<int32_t>(s.local_heads),
                  .kv = kv,
                  .tables = tables,
                  .sequences = arrays_.runs,
                  .positions = arrays_.positions,
                  .pairing = pairing_of(config_),
                  .rotary_dim = static_cast<int32_t>(config_.rotary_dim),
                  .cos = arrays_.cos,
                  .sin = arrays_.sin,
                  .rotary_positions = row_numbers_},
                 launch_);

  const int64_t global_layer = place_.first_layer + layer;
  double scale = config_.attention_scale != 0.0 ? config_.attention_scale
                                                : 1.0 / std::sqrt(static_cast<double>(s.head_dim));
  if (config_.scale_attn_by_inverse_layer_idx) scale /= static_cast<double>(global_layer + 1);
  const int64_t window = global_layer >= config_.first_sliding_layer ? config_.sliding_window : 0;
  const bool split = place_.tp > 1;
  void* const local = split ? local_.data() : attention_.data();
  const auto heads = static_cast<int32_t>(s.local_heads);
  if (arrays_.num_singles > 0) {
    ops::decode_attention(
        local,
        {.q = qkv_.data(),
         .q_stride = s.qkv_width(),
         .kv = kv,
         .tables = tables,
         .seq_lens = arrays_.seq_lens,
         .num_sequences = arrays_.num_singles,
         .num_heads = heads,
         .scale = static_cast<float>(scale),
         .alibi_slopes = slopes_,
         .window = static_cast<int32_t>(window),
         .num_splits = ops::decode_attention_splits(
             arrays_.num_singles, heads, static_cast<int32_t>(s.kv_heads), launch_.num_sms),
         .scratch = attention_scratch_.data()},
        launch_);
  }
  const int64_t first = arrays_.num_singles;
  ops::prefill_attention(local,
                         {.q = qkv_.data(),
                          .q_stride = s.qkv_width(),
                          .kv = kv,
                          .tables = {.pages = arrays_.tables + first * arrays_.table_stride,
                                     .stride = arrays_.table_stride},
                          .first_rows = arrays_.first_rows + first,
                          .num_tokens = arrays_.run_tokens + first,
                          .first_positions = arrays_.first_positions + first,
                          .num_runs = arrays_.num_runs - first,
                          .max_tokens = arrays_.max_run,
                          .num_heads = heads,
                          .scale = static_cast<float>(scale),
                          .alibi_slopes = slopes_,
                          .window = static_cast<int32_t>(window)},
                         launch_);
  if (split) {
    gather_columns(attention_.data(), local, dtype_, num_tokens_, s.local_heads * s.padded_dim,
                   s.heads_width(), comm);
  }
}

void DeviceDecoder::run_inner(const Input& input, const Layer& weights, const RankComm& comm) {
  const DeviceSizes& s = sizes_;
  void* const local = place_.tp > 1 ? local_.data() : inner_.data();
  if (!config_.gated_mlp) {
    multiply(local, dtype_, weights.up, input, num_tokens_, {.activated = true});
  } else if (num_tokens_ == 1) {
    multiply(local, dtype_, weights.up, input, 1, {.gated = true});
  } else {
    multiply(gate_up_.data(), dtype_, weights.up, input, num_tokens_, {});
    ops::gated_activation(local, gate_up_.data(), dtype_, num_tokens_, s.padded_ffn,
                          activation_op(config_.activation), launch_);
  }
  if (place_.tp > 1) {
    gather_columns(inner_.data(), local, dtype_, num_tokens_, s.padded_ffn,
                   place_.tp * s.padded_ffn, comm);
  }
}

void DeviceDecoder::add_product(const DeviceMatrix& matrix, const void* input,
                                const RankComm& comm) {
  if (place_.tp == 1) {
    return multiply(x_, DType::F32, matrix, {input, dtype_}, num_tokens_, {.residual = x_});
  }
  multiply(local_.data(), DType::F32, matrix, {input, dtype_}, num_tokens_, {});
  gather_columns(x2_, local_.data(), DType::F32, num_tokens_, sizes_.local_hidden, sizes_.hidden,
                 comm);
  ops::add(x_, x2_, DType::F32, num_tokens_ * sizes_.hidden, launch_);
}

void DeviceDecoder::run_layer(int64_t layer, const RankComm& comm) {
  const Layer& weights = layers_[static_cast<size_t>(layer)];
  if (config_.residual != ResidualKind::kSequential) {
    // Both branches read x before either is added to it.
    const Input first = normed(weights.norm1);
    attend(first, layer, comm);
    const bool two_norms = config_.residual == ResidualKind::kParallelTwoNorms;
    run_inner(two_norms ? normed(weights.norm2) : first, weights, comm);
    add_product(weights.o, attention_.data(), comm);
    return add_product(weights.down, inner_.data(), comm);
  }

  // One half of the layer: x = residual + f(norm x), or x = norm(x + f(x)).
  const auto half = [&](const Norm& norm, const auto& f) {
    Input input{h_.data(), dtype_};
    if (!config_.pre_norm) {
      ops::convert(h_.data(), dtype_, x_, DType::F32, num_tokens_ * sizes_.hidden, launch_);
    } else if (config_.residual_from_norm) {
      normalize(h_.data(), dtype_, x_, norm, num_tokens_);
      normalize(x_, DType::F32, x_, norm, num_tokens_);
    } else {
      input = normed(norm);
    }
    f(input);
    if (!config_.pre_norm) normalize(x_, DType::F32, x_, norm, num_tokens_);
  };
  half(weights.norm1, [&](const Input& input) {
    attend(input, layer, comm);
    add_product(weights.o, attention_.data(), comm);
  });
  half(weights.norm2, [&](const Input& input) {
    run_inner(input, weights, comm);
    add_product(weights.down, inner_.data(), comm);
  });
}

void DeviceDecoder::compute(const Step& step, const RankComm& comm) {
  num_tokens_ = static_cast<int64_t>(step.ids.size());
  if (num_tokens_ > max_tokens_) throw Error(ErrorCode::kInternal, "a step of too many tokens");
  use_device();
  arrays_.fill(step, rope_ ? &*rope_ : nullptr, stream_);
  if (place_.is_first_stage()) {
    embed(step, comm);
  } else {
    const size_t bytes = static_cast<size_t>(num_tokens_ * sizes_.hidden) * sizeof(float);
    boundary_done_.synchronize();
    comm.world->recv(boundary_.data(), bytes, place_.rank() - place_.tp);
    copy_to_device(x_, boundary_.data(), bytes, stream_);
    boundary_done_.record(stream_);
  }
  run_or_replay(comm);
}

void DeviceDecoder::run_layers(const RankComm& comm) {
  if (arrays_.num_singles > 0) {
    // The counters at its front must be zero, and another number of sequences puts other things
    // there.
    LLMCTL_CUDA_CHECK(cudaMemsetAsync(
        attention_scratch_.data(), 0,
        static_cast<size_t>(arrays_.num_singles * sizes_.local_heads) * sizeof(int32_t),
        stream_.get()));
  }
  for (int64_t l = 0; l < static_cast<int64_t>(layers_.size()); ++l) run_layer(l, comm);
}

void DeviceDecoder::run_or_replay(const RankComm& comm) {
  // Ranks that split layers exchange through the host, which no graph holds.
  if (place_.tp > 1 || layers_.empty() || arrays_.num_singles < num_tokens_) {
    return run_layers(comm);
  }
  const GraphKey key{num_tokens_, arrays_.table_stride, arrays_.generation, cache_.layer(0).pool,
                     cache_.capacity_pages()};
  const auto found = std::find_if(graphs_.begin(), graphs_.end(),
                                  [&](const RecordedGraph& g) { return g.key == key; });
  if (found != graphs_.end()) {
    found->graph.launch(stream_);
    std::rotate(found, found + 1, graphs_.end());
    return;
  }
  // Recording costs several passes: only what comes a second time is worth it.
  if (!(key == last_key_)) {
    last_key_ = key;
    return run_layers(comm);
  }
  if (graphs_.size() == kMaxGraphs) {
    stream_.synchronize();
    graphs_.erase(graphs_.begin());
  }
  graphs_.push_back({key, Graph(stream_, [&] { run_layers(comm); })});
  graphs_.back().graph.launch(stream_);
}

void DeviceDecoder::hand_over(const RankComm& comm) {
  if (place_.is_last_stage()) return;
  use_device();
  const size_t bytes = static_cast<size_t>(num_tokens_ * sizes_.hidden) * sizeof(float);
  copy_to_host(boundary_.data(), x_, bytes, stream_);
  stream_.synchronize();
  comm.world->send(boundary_.data(), bytes, place_.rank() + place_.tp);
}

const float* DeviceDecoder::logits(std::span<const int32_t> rows, const RankComm& comm) {
  const auto num_rows = static_cast<int64_t>(rows.size());
  if (num_rows > kMaxLogitRows) throw Error(ErrorCode::kInternal, "too many rows of logits");
  const DeviceSizes& s = sizes_;
  use_device();
  rows_done_.synchronize();
  std::copy(rows.begin(), rows.end(), row_ids_host_.as<int32_t>());
  copy_to_device(row_ids_.data(), row_ids_host_.data(), rows.size_bytes(), stream_);
  rows_done_.record(stream_);
  ops::embedding(rows_.data(), DType::F32,
                 {.table = x_,
                  .dtype = DType::F32,
                  .ids = row_ids_.as<int32_t>(),
                  .num_rows = num_tokens_,
                  .num_tokens = num_rows,
                  .width = s.hidden},
                 launch_);
  // The pass is done with h_.
  if (config_.final_norm) {
    normalize(h_.data(), dtype_, rows_.as<float>(), final_norm_, num_rows);
  } else {
    ops::convert(h_.data(), dtype_, rows_.data(), DType::F32, num_rows * s.hidden, launch_);
  }
  const void* input = h_.data();
  if (!project_out_.empty()) {
    multiply(narrow_.data(), dtype_, project_out_, {input, dtype_}, num_rows, {});
    input = narrow_.data();
  }
  multiply(logits_.data(), DType::F32, head_, {input, dtype_}, num_rows, {});
  const size_t local_bytes = static_cast<size_t>(num_rows * s.local_vocab) * sizeof(float);
  float* const out = logits_host_.as<float>();
  if (place_.tp == 1) {
    copy_to_host(out, logits_.data(), local_bytes, stream_);
    stream_.synchronize();
    return out;
  }
  const auto* const all =
      reinterpret_cast<const float*>(gather_on_host(logits_.data(), local_bytes, comm));
  for (int64_t r = 0; r < place_.tp; ++r) {
    const int64_t first = r * s.local_vocab;
    const int64_t count = std::min(s.local_vocab, config_.vocab_size - first);
    for (int64_t row = 0; row < num_rows && count > 0; ++row) {
      std::copy_n(all + (r * num_rows + row) * s.local_vocab, count,
                  out + row * config_.vocab_size + first);
    }
  }
  return out;
}

}  // namespace llmctl::runtime::cuda
