#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/rotary_kv.h"
#include "kernels/ops.h"
#include "tests/gpu/checker.h"

namespace llmctl::gpu {
namespace {

namespace cuda = kernels::cuda;
namespace reference = kernels::reference;

/// A block table that uses pages in a scattered order, some far into the pool.
std::vector<int32_t> scattered_tables(int64_t sequences, int64_t pages_each, int32_t num_pages) {
  std::vector<int32_t> tables(static_cast<size_t>(sequences * pages_each));
  for (size_t i = 0; i < tables.size(); ++i) {
    tables[i] = static_cast<int32_t>((i * 7 + 3) % static_cast<size_t>(num_pages));
  }
  return tables;
}

}  // namespace

void check_rotary(const Checker& c) {
  using cuda::RotaryPairing;
  const cudaStream_t s = c.stream.handle;
  struct Case {
    RotaryPairing pairing;
    int32_t heads, kv_heads, head_dim, rotary_dim, page_size;
    DType dtype;
  };
  const Case cases[] = {
      {RotaryPairing::kHalves, 4, 4, 64, 64, 16, DType::F16},
      {RotaryPairing::kHalves, 8, 2, 128, 128, 32, DType::BF16},
      {RotaryPairing::kHalves, 3, 1, 80, 20, 32, DType::F16},
      {RotaryPairing::kInterleaved, 4, 4, 256, 64, 32, DType::F16},
      {RotaryPairing::kInterleaved, 6, 3, 96, 96, 8, DType::BF16},
      {RotaryPairing::kTwoBlocks, 4, 2, 128, 64, 32, DType::F16},
      {RotaryPairing::kNone, 5, 5, 40, 0, 32, DType::BF16},
  };
  uint64_t seed = 20000;
  for (const Case& t : cases) {
    seed += 10;
    constexpr int64_t kTokens = 7, kMaxPositions = 100;
    constexpr int32_t kPages = 64;
    const int64_t q_width = t.heads * t.head_dim, kv_width = t.kv_heads * t.head_dim;
    const int64_t row = q_width + 2 * kv_width;
    const int64_t tables_width = kMaxPositions / t.page_size + 1;
    const int64_t page_stride = 2 * kv_width * t.page_size;
    const Tensor qkv = random_tensor(kTokens * row, 1.0F, seed, t.dtype, s);
    // Sequence 0 at three positions, others at one; token 4 is padding.
    const std::vector<int32_t> positions = {0, 1, 63, 31, -1, 32, 99};
    const std::vector<int32_t> sequences = {0, 0, 0, 1, 1, 2, 3};
    const std::vector<int32_t> blocks = {0, 3, 5, 0, 0, 7, 99};
    const std::vector<int32_t> tables = scattered_tables(4, tables_width, kPages);
    const int64_t angles =
        t.pairing == RotaryPairing::kTwoBlocks ? t.rotary_dim / 4 : t.rotary_dim / 2;
    std::vector<float> cos(static_cast<size_t>(kMaxPositions * angles)), sin(cos.size());
    for (int64_t p = 0; p < kMaxPositions; ++p) {
      for (int64_t i = 0; i < angles; ++i) {
        const double angle =
            static_cast<double>(p) *
            std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(angles));
        cos[static_cast<size_t>(p * angles + i)] = static_cast<float>(std::cos(angle));
        sin[static_cast<size_t>(p * angles + i)] = static_cast<float>(std::sin(angle));
      }
    }
    // What the reference makes of every token; two blocks are two calls on halves of the head.
    const auto turned = [&](std::vector<float> x, int64_t heads) {
      for (int64_t token = 0; token < kTokens; ++token) {
        if (t.pairing == RotaryPairing::kNone || positions[static_cast<size_t>(token)] < 0)
          continue;
        const int64_t at = positions[static_cast<size_t>(token)] * angles;
        float* const head0 = x.data() + token * heads * t.head_dim;
        if (t.pairing == RotaryPairing::kTwoBlocks) {
          const int64_t block_at = blocks[static_cast<size_t>(token)] * angles;
          for (int64_t h = 0; h < heads; ++h) {
            float* const head = head0 + h * t.head_dim;
            reference::rotary(head, cos.data() + at, sin.data() + at, 1, 1, t.head_dim,
                              t.rotary_dim / 2, false, 0);
            reference::rotary(head + t.rotary_dim / 2, cos.data() + block_at, sin.data() + block_at,
                              1, 1, t.head_dim, t.rotary_dim / 2, false, 0);
          }
        } else {
          reference::rotary(head0, cos.data() + at, sin.data() + at, 1, heads, t.head_dim,
                            t.rotary_dim, t.pairing == RotaryPairing::kInterleaved, 0);
        }
      }
      return x;
    };
    const auto columns = [&](int64_t from, int64_t width) {
      std::vector<float> part(static_cast<size_t>(kTokens * width));
      for (int64_t token = 0; token < kTokens; ++token) {
        std::copy_n(qkv.values.begin() + token * row + from, width, part.begin() + token * width);
      }
      return part;
    };
    const std::vector<float> q_want = turned(columns(0, q_width), t.heads);
    const std::vector<float> k_want = turned(columns(q_width, kv_width), t.kv_heads);
    const std::vector<float> v_want = columns(q_width + kv_width, kv_width);
    std::vector<float> qkv_want = qkv.values;
    std::vector<float> pool_want(static_cast<size_t>(kPages * page_stride), NAN);
    for (int64_t token = 0; token < kTokens; ++token) {
      const int32_t p = positions[static_cast<size_t>(token)];
      if (p < 0) continue;
      std::copy_n(q_want.begin() + token * q_width, q_width, qkv_want.begin() + token * row);
      const int64_t page = tables[static_cast<size_t>(
          sequences[static_cast<size_t>(token)] * tables_width + p / t.page_size)];
      for (int64_t h = 0; h < t.kv_heads; ++h) {
        const int64_t at = page * page_stride + (h * t.page_size + p % t.page_size) * t.head_dim;
        std::copy_n(k_want.begin() + token * kv_width + h * t.head_dim, t.head_dim,
                    pool_want.begin() + at);
        std::copy_n(v_want.begin() + token * kv_width + h * t.head_dim, t.head_dim,
                    pool_want.begin() + at + kv_width * t.page_size);
      }
    }

    const Buffer pool(static_cast<size_t>(kPages * page_stride) * 2);
    const Buffer table_device = upload_ints(tables, s), position_device = upload_ints(positions, s);
    const Buffer sequence_device = upload_ints(sequences, s), block_device = upload_ints(blocks, s);
    const Tensor cos_device = make_tensor(cos, DType::F32, s);
    const Tensor sin_device = make_tensor(sin, DType::F32, s);
    std::vector<uint8_t> q_bits, pool_bits;
    bool same = true;
    for (int i = 0; i < 2; ++i) {
      pool.poison(s);
      qkv.buffer.upload(qkv.raw.data(), qkv.raw.size(), s);
      auto* const base = qkv.buffer.as<uint16_t>();
      cuda::rotary_kv({.q = base,
                       .k = base + q_width,
                       .v = base + q_width + kv_width,
                       .q_stride = row,
                       .kv_stride = row,
                       .num_tokens = kTokens,
                       .num_heads = t.heads,
                       .kv = {.pool = pool.data(),
                              .page_stride = page_stride,
                              .num_kv_heads = t.kv_heads,
                              .head_dim = t.head_dim,
                              .page_size = t.page_size,
                              .dtype = t.dtype},
                       .tables = {.pages = table_device.as<int32_t>(), .stride = tables_width},
                       .sequences = sequence_device.as<int32_t>(),
                       .positions = position_device.as<int32_t>(),
                       .pairing = t.pairing,
                       .rotary_dim = t.rotary_dim,
                       .cos = cos_device.buffer.as<float>(),
                       .sin = sin_device.buffer.as<float>(),
                       .block_positions = block_device.as<int32_t>()},
                      c.stream);
      const std::vector<uint8_t> q_now = qkv.buffer.download(s), pool_now = pool.download(s);
      same = same && (i == 0 || (q_now == q_bits && pool_now == pool_bits));
      q_bits = q_now;
      pool_bits = pool_now;
    }
    const char* const words[] = {"none", "halves", "interleaved", "two blocks"};
    const std::string name = std::string("rotary_kv ") + words[static_cast<int>(t.pairing)] + " " +
                             std::to_string(t.heads) + "/" + std::to_string(t.kv_heads) + " d" +
                             std::to_string(t.head_dim) + " rot" + std::to_string(t.rotary_dim) +
                             " " + dtype_word(t.dtype);
    c.report.check_true(name + ": same bits twice", same);
    c.report.check(name + ": q, k and v columns", relative_error(widen(q_bits, t.dtype), qkv_want),
                   bound_of(t.dtype));
    // Written rows close to the reference, every other element of the pool still NaN.
    const std::vector<float> pool_got = widen(pool_bits, t.dtype);
    std::vector<float> got, want;
    bool only_rows = true;
    for (size_t i = 0; i < pool_want.size(); ++i) {
      if (std::isnan(pool_want[i])) {
        only_rows = only_rows && std::isnan(pool_got[i]);
      } else {
        got.push_back(pool_got[i]);
        want.push_back(pool_want[i]);
      }
    }
    c.report.check(name + ": cache", relative_error(got, want), bound_of(t.dtype));
    c.report.check_true(name + ": no other row written", only_rows);
  }
}

}  // namespace llmctl::gpu
