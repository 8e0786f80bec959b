#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "formats/core/error.h"

namespace llmctl::runtime {
namespace {

/// 53 random bits as a number in [0, 1).
double uniform(uint64_t seed, uint32_t stream, int64_t position) {
  const auto p = static_cast<uint64_t>(position);
  const auto bits = philox({static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32), stream, 0},
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
  if (!(params.min_p >= 0 && params.min_p <= 1)) {
    throw_usage("--min-p", "must be at least 0 and at most 1", "0 keeps all tokens");
  }
  if (!(params.typical_p > 0 && params.typical_p <= 1)) {
    throw_usage("--typical-p", "must be more than 0 and at most 1", "1 keeps all tokens");
  }
}

double log_sum_exp(const float* row, int64_t size) {
  float highest = -INFINITY;
  for (int64_t i = 0; i < size; ++i) highest = std::max(highest, row[i]);
  if (highest == -INFINITY) return -INFINITY;
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) {
    sum += std::exp(static_cast<double>(row[i]) - static_cast<double>(highest));
  }
  return static_cast<double>(highest) + std::log(sum);
}

Sampler::Sampler(int64_t vocab_size)
    : vocab_size_(vocab_size),
      order_(static_cast<size_t>(vocab_size)),
      kept_(static_cast<size_t>(vocab_size)),
      distance_(static_cast<size_t>(vocab_size)) {}

int64_t Sampler::find_best(const float* logits, int64_t position) const {
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
  return best;
}

int32_t Sampler::sample(const float* logits, const SamplingParams& params, int64_t position,
                        uint32_t stream) {
  const int64_t best = find_best(logits, position);
  if (params.temperature == 0 || params.top_k == 1) return static_cast<int32_t>(best);
  const auto choices = candidates(logits, params);
  double total = 0;
  for (const Candidate& c : choices) total += c.weight;
  const double target = uniform(params.seed, stream, position) * total;
  double passed = 0;
  int32_t last = static_cast<int32_t>(best);  // rounding may leave target just short of the sum
  for (const Candidate& c : choices) {
    passed += c.weight;
    if (c.weight > 0) last = c.id;
    if (target < passed) return c.id;
  }
  return last;
}

std::span<const Sampler::Candidate> Sampler::candidates(const float* logits,
                                                        const SamplingParams& params) {
  const float highest = *std::max_element(logits, logits + vocab_size_);
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
  kept_.resize(count);  // never more than at construction
  double total = 0;
  const auto weigh = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) kept_[i] = {order_[i], weight(order_[i])};
  };
  weigh(0, count);
  for (const Candidate& c : kept_) total += c.weight;
  if (params.top_p < 1) {
    // Few tokens hold most of the mass, so only as many as needed are sorted.
    const double wanted = params.top_p * total;
    double mass = 0;
    size_t kept = 0;
    while (kept < count && mass < wanted) {
      if (kept == sorted) {
        sort_first(std::min(count, std::max<size_t>(256, sorted * 4)));
        weigh(kept, sorted);
      }
      mass += kept_[kept++].weight;
    }
    kept_.resize(kept);
  }
  if (params.min_p > 0) {
    std::erase_if(kept_, [&](const Candidate& c) { return c.weight < params.min_p; });
  }
  if (params.typical_p < 1) keep_typical(params.typical_p);
  return kept_;
}

/// Locally typical sampling (Meister et al., 2023): the tokens whose information is closest to the
/// distribution's entropy.
void Sampler::keep_typical(double mass) {
  double total = 0;
  for (const Candidate& c : kept_) total += c.weight;
  double entropy = 0;
  for (const Candidate& c : kept_) {
    const double p = c.weight / total;
    if (p > 0) entropy -= p * std::log(p);
  }
  // By place in kept_, then sorted as order_.
  for (size_t i = 0; i < kept_.size(); ++i) {
    order_[i] = static_cast<int32_t>(i);
    distance_[i] = std::abs(-std::log(kept_[i].weight / total) - entropy);
  }
  const auto end = order_.begin() + static_cast<std::ptrdiff_t>(kept_.size());
  std::sort(order_.begin(), end, [&](int32_t a, int32_t b) {
    const double x = distance_[static_cast<size_t>(a)], y = distance_[static_cast<size_t>(b)];
    return x != y ? x < y : a < b;
  });
  double reached = 0;
  double limit = INFINITY;
  for (auto at = order_.begin(); at != end; ++at) {
    reached += kept_[static_cast<size_t>(*at)].weight / total;
    if (reached < mass) continue;
    limit = distance_[static_cast<size_t>(*at)];
    break;
  }
  size_t kept = 0;  // equally typical ones stay together, in the order that they had
  for (size_t i = 0; i < kept_.size(); ++i) {
    if (distance_[i] <= limit) kept_[kept++] = kept_[i];
  }
  kept_.resize(kept);
}

float Sampler::logprobs(const float* logits, int32_t chosen, std::span<TokenLogprob> top) {
  const double sum = log_sum_exp(logits, vocab_size_);
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(static_cast<double>(logits[id]) - sum);
  };
  if (!top.empty()) {
    std::iota(order_.begin(), order_.end(), 0);
    const size_t count = std::min(top.size(), order_.size());
    std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(count),
                      order_.end(), [&](int32_t a, int32_t b) {
                        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
                      });
    for (size_t i = 0; i < count; ++i) top[i] = {order_[i], logprob(order_[i])};
  }
  return logprob(chosen);
}

}  // namespace llmctl::runtime
