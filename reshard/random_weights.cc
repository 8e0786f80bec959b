#include "reshard/random_weights.h"

#include <algorithm>
#include <array>

#include "reshard/canonical.h"

namespace llmctl::reshard {
namespace {

__extension__ using Wide = unsigned __int128;

/// High and low half of a product, folded: one multiplication mixes all bits (wyhash, Wang Yi).
uint64_t fold(uint64_t a, uint64_t b) {
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15, kMix = 0xD6E8FEB86659FD93;

/// Two elements for each hash. One multiplication leaves neighbours at distances of powers of two
/// alike.
uint64_t hash_of(uint64_t key, uint64_t pair) { return fold(fold(pair ^ key, kGolden), kMix); }

/// 32 random bits as a sum of three 10-bit numbers and a 2-bit one, centred: odd, within +-12279,
/// of standard deviation 4096.
int32_t centred(uint32_t bits) {
  const uint32_t sum = (bits & 1023) + (bits >> 10 & 1023) + (bits >> 20 & 1023);
  return static_cast<int32_t>(2 * (4 * sum + (bits >> 30))) - 12279;
}

bool is_norm_weight(std::string_view key) {
  const std::string_view name = key.substr(key.rfind('.') + 1);
  constexpr std::array<std::string_view, 5> kNorms = {"norm1", "norm2", "final_norm", "embed_norm",
                                                      "lf_norm"};
  return std::find(kNorms.begin(), kNorms.end(), name) != kNorms.end();
}

}  // namespace

RandomTensor::RandomTensor(uint64_t seed, std::string_view key) {
  key_ = fold(seed ^ kGolden, kMix);
  for (const char c : key) key_ = fold(key_ ^ static_cast<unsigned char>(c), kGolden);
  // 2^-18 times an integer of 14 bits is exact, and so is the sum with 1: no rounding depends on
  // whether the compiler fuses the two.
  const bool norm = is_norm_weight(key);
  step_ = norm ? 0x1p-18F : 0.02F / 4096;
  mean_ = norm ? 1.0F : 0.0F;
}

void RandomTensor::fill(int64_t first, std::span<float> out) const {
  // Hashing and arithmetic take turns on a block that stays in cache: the second vectorises.
  constexpr size_t kBlock = 512;
  std::array<uint32_t, kBlock + 2> bits;
  size_t done = 0;
  while (done < out.size()) {
    const uint64_t start = static_cast<uint64_t>(first) + done;
    const size_t skip = start & 1;
    const size_t count = std::min(kBlock, out.size() - done);
    for (size_t i = 0; i < skip + count; i += 2) {
      const uint64_t hash = hash_of(key_, (start + i) / 2);
      bits[i] = static_cast<uint32_t>(hash);
      bits[i + 1] = static_cast<uint32_t>(hash >> 32);
    }
    float* target = out.data() + done;
    for (size_t i = 0; i < count; ++i) {
      target[i] = mean_ + step_ * static_cast<float>(centred(bits[skip + i]));
    }
    done += count;
  }
}

}  // namespace llmctl::reshard
