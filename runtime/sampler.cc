#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "formats/core/error.h"

namespace llmctl::runtime {
namespace {

/// 53 random bits as a number in [0, 1).
double uniform(uint64_t seed, int64_t position) {
  const auto p = static_cast<uint64_t>(position);
  const auto bits = philox({static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32), 0, 0},
                           {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t word = uint64_t{bits[1]} << 32 | bits[0];
  return static_cast<double>(word >> 11) * 0x1p-53;
}

}  // namespace

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(p0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return c;
}

void check_sampling(const SamplingParams& params) {
  if (!std::isfinite(params.temperature) || params.temperature < 0) {
    throw_usage("--temperature", "must be a finite number of at least 0", "0 means greedy");
  }
  if (params.top_k < 0) throw_usage("--top-k", "must be at least 0", "0 keeps all tokens");
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    throw_usage("--top-p", "must be more than 0 and at most 1", "1 keeps all tokens");
  }
}

Sampler::Sampler(int64_t vocab_size)
    : vocab_size_(vocab_size),
      order_(static_cast<size_t>(vocab_size)),
      weights_(static_cast<size_t>(vocab_size)) {}

int32_t Sampler::sample(const float* logits, const SamplingParams& params, int64_t position) {
  int64_t best = 0;
  bool broken = false;
  for (int64_t i = 0; i < vocab_size_; ++i) {
    broken |= !(logits[i] < INFINITY);
    if (logits[i] > logits[best]) best = i;
  }
  if (broken || logits[best] == -INFINITY) {
    throw_invalid("position " + std::to_string(position), "the model's logits are not finite",
                  "the weights are damaged, or overflow in the chosen --dtype; try --dtype fp32");
  }
  if (params.temperature == 0 || params.top_k == 1) return static_cast<int32_t>(best);
  return draw(logits, params, logits[best], uniform(params.seed, position));
}

int32_t Sampler::draw(const float* logits, const SamplingParams& params, float highest, double u) {
  const auto weight = [&](int32_t id) {
    return std::exp((static_cast<double>(logits[id]) - static_cast<double>(highest)) /
                    params.temperature);
  };
  const auto likelier = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  std::iota(order_.begin(), order_.end(), 0);
  auto count = static_cast<size_t>(vocab_size_);
  size_t sorted = 0;  // order_[0, sorted) are the likeliest, in order
  const auto sort_first = [&](size_t n) {
    const auto at = [&](size_t i) { return order_.begin() + static_cast<std::ptrdiff_t>(i); };
    if (n < count) std::nth_element(at(sorted), at(n), at(count), likelier);
    std::sort(at(sorted), at(n), likelier);
    sorted = n;
  };
  if (params.top_k > 0 && params.top_k < vocab_size_) {
    const auto k = static_cast<size_t>(params.top_k);
    sort_first(k);
    count = k;
  }
  double total = 0;
  for (size_t i = 0; i < count; ++i) total += weights_[i] = weight(order_[i]);
  if (params.top_p < 1) {
    // Few tokens hold most of the mass, so only as many as needed are sorted.
    const double wanted = params.top_p * total;
    double mass = 0;
    size_t kept = 0;
    while (kept < count && mass < wanted) {
      if (kept == sorted) {
        sort_first(std::min(count, std::max<size_t>(256, sorted * 4)));
        for (size_t i = kept; i < sorted; ++i) weights_[i] = weight(order_[i]);
      }
      mass += weights_[kept++];
    }
    count = kept;
    total = mass;
  }
  const double target = u * total;
  double passed = 0;
  size_t last = 0;  // rounding may leave target just short of the sum: the last possible token
  for (size_t i = 0; i < count; ++i) {
    passed += weights_[i];
    if (weights_[i] > 0) last = i;
    if (target < passed) return order_[i];
  }
  return order_[last];
}

}  // namespace llmctl::runtime
