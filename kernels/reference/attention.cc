#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/convert.h"

namespace llmctl::kernels::reference {

void attention(float* y, const AttentionArgs& args) {
  const PagedKv& kv = args.kv;
  const int64_t group = args.num_heads / kv.num_kv_heads;
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    const int64_t position = args.positions[t];
    const int64_t begin = args.window > 0 ? std::max<int64_t>(0, position + 1 - args.window) : 0;
    for (int64_t head = 0; head < args.num_heads; ++head) {
      const float* q = args.q + t * args.q_stride + head * kv.head_dim;
      const auto entry = [&](int64_t p, bool value, int64_t d) {
        const int64_t row = (value ? kv.num_kv_heads : 0) + head / group;
        const int64_t at = args.block_tables[t][p / kv.page_size] * kv.page_stride +
                           (row * kv.page_size + p % kv.page_size) * kv.head_dim + d;
        if (kv.dtype == DType::F32) return double{static_cast<const float*>(kv.pool)[at]};
        const uint16_t bits = static_cast<const uint16_t*>(kv.pool)[at];
        return double{kv.dtype == DType::F16 ? half_to_float(bits) : bfloat16_to_float(bits)};
      };
      std::vector<double> weights;
      for (int64_t p = begin; p <= position; ++p) {
        double dot = 0;
        for (int64_t d = 0; d < kv.head_dim; ++d) dot += double{q[d]} * entry(p, false, d);
        dot *= double{args.scale};
        if (args.alibi_slopes != nullptr) {
          dot += double{args.alibi_slopes[head]} * static_cast<double>(p - position);
        }
        weights.push_back(dot);
      }
      const double largest = *std::max_element(weights.begin(), weights.end());
      double sum = 0;
      for (double& weight : weights) {
        weight = std::exp(weight - largest);
        sum += weight;
      }
      float* out = y + (t * args.num_heads + head) * kv.head_dim;
      for (int64_t d = 0; d < kv.head_dim; ++d) {
        double value = 0;
        for (int64_t p = begin; p <= position; ++p) {
          value += weights[static_cast<size_t>(p - begin)] * entry(p, true, d);
        }
        out[d] = static_cast<float>(value / sum);
      }
    }
  }
}

}  // namespace llmctl::kernels::reference
