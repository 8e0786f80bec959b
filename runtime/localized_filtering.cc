// Yuan 2.0's localized filtering: what queries and keys are projected from.
//
//     y1[s] = conv1(n[s - 1], n[s])      y2[s] = conv2(y1[s - 1], y1[s])      u = norm(y2 + n)
//
// n is the normed input. Before a sequence's first token stand zeros, for y1 too: not conv1 of
// zeros, which would be its bias. Both convolutions are split by output channels and gathered like
// every other matrix, so that u has the same bits for every tp.
#include <algorithm>
#include <cstring>

#include "runtime/decoder.h"

namespace llmctl::runtime {

/// The convolution's input at the token before row t: in the row above, or, where the sequence
/// began in an earlier pass, in the state of the page that holds that token. Null: there is none.
const float* Decoder::find_previous(const float* x, const Convolution& convolution, int64_t t,
                                    int64_t layer, const Step& step) const {
  const auto i = static_cast<size_t>(t);
  const int32_t position = step.positions[i];
  if (position == 0) return nullptr;
  if (t > 0 && step.block_tables[i - 1] == step.block_tables[i]) {
    return x + (t - 1) * convolution.in_channels;
  }
  const int32_t page = step.block_tables[i][(position - 1) / cache_.page_size()];
  return cache_.state(layer, page) + convolution.state_offset;
}

void Decoder::convolve(float* y, const float* x, const Convolution& convolution, int64_t layer,
                       const Step& step, const RankComm& comm) {
  const Matrix& m = convolution.matrix;
  const int64_t groups = config_.lf_groups;
  const int64_t channels = convolution.in_channels / groups;
  // For each group of channels a matrix of one row a token: the previous token's channels, then its
  // own.
  const auto bytes = static_cast<size_t>(channels) * sizeof(float);
  for (int64_t t = 0; t < num_tokens_; ++t) {
    const float* own = x + t * convolution.in_channels;
    const float* previous = find_previous(x, convolution, t, layer, step);
    for (int64_t g = 0; g < groups; ++g) {
      float* row = window_.data() + (g * num_tokens_ + t) * m.columns;
      if (previous != nullptr) {
        std::memcpy(row, previous + g * channels, bytes);
      } else {
        std::fill_n(row, channels, 0.0F);
      }
      std::memcpy(row + channels, own + g * channels, bytes);
    }
  }
  // A rank's output channels may begin and end inside a group.
  const int64_t group_rows = convolution.out_channels / groups;
  const int64_t first_row = place_.tp_rank * m.rows;
  float* local = place_.tp == 1 ? y : rows_.data();
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = std::max(g * group_rows - first_row, int64_t{0});
    const int64_t end = std::min((g + 1) * group_rows - first_row, m.rows);
    if (begin >= end) continue;
    const float* window = window_.data() + g * num_tokens_ * m.columns;
    // From the panel that the group's first row is in; what precedes that row is another group's.
    const int64_t first = begin / kernels::kPanelRows * kernels::kPanelRows;
    const kernels::PanelMatrix part = kernels::panel_rows(m, first, end - first);
    const float* bias = m.bias != nullptr ? m.bias + first : nullptr;
    if (first == begin) {
      kernels::linear(local + begin, window, part, bias, num_tokens_, m.rows, activations_for(m),
                      packed_.data(), pool_);
      continue;
    }
    kernels::linear(second_.data(), window, part, bias, num_tokens_, part.rows, activations_for(m),
                    packed_.data(), pool_);
    for (int64_t t = 0; t < num_tokens_; ++t) {
      std::memcpy(local + t * m.rows + begin, second_.data() + t * part.rows + begin - first,
                  static_cast<size_t>(end - begin) * sizeof(float));
    }
  }
  if (place_.tp > 1) {
    gather_columns(y, local, num_tokens_, m.rows, convolution.out_channels, comm);
  }
}

/// Keeps what the next token of each sequence needs with the page that this one is in. Only the
/// last token of a sequence or of a page is ever asked for.
void Decoder::keep_state(const float* x, int64_t layer, const Step& step) {
  const int64_t hidden = config_.hidden_size;
  const int64_t half = hidden / 2;
  for (int64_t t = 0; t < num_tokens_; ++t) {
    const auto i = static_cast<size_t>(t);
    const int64_t position = step.positions[i];
    const bool goes_on = t + 1 < num_tokens_ && step.block_tables[i + 1] == step.block_tables[i];
    if (goes_on && (position + 1) % cache_.page_size() != 0) continue;
    float* state = cache_.state(layer, step.block_tables[i][position / cache_.page_size()]);
    std::memcpy(state, x + t * hidden, static_cast<size_t>(hidden) * sizeof(float));
    std::memcpy(state + hidden, filter_.data() + t * half,
                static_cast<size_t>(half) * sizeof(float));
  }
}

/// u of every token, (num_tokens, hidden_size); lies in second_, and uses branch_. A convolution
/// may use second_ on the way.
const float* Decoder::filter(const float* x, int64_t layer, const Step& step,
                             const RankComm& comm) {
  const Layer& weights = layers_[static_cast<size_t>(layer)];
  convolve(filter_.data(), x, weights.conv1, layer, step, comm);
  convolve(branch_.data(), filter_.data(), weights.conv2, layer, step, comm);
  keep_state(x, layer, step);
  kernels::add(branch_.data(), x, num_tokens_ * config_.hidden_size, pool_);
  normalize(second_.data(), branch_.data(), weights.lf_norm);
  return second_.data();
}

}  // namespace llmctl::runtime
