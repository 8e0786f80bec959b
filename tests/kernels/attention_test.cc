#include "kernels/attention.h"

#include <numeric>

#include "kernels/cpu/dispatch.h"
#include "tests/kernels/kernel_test.h"

namespace llmctl {
namespace {

using kernels::AttentionArgs;
using kernels::Isa;
using kernels::PagedKv;
using test::random_floats;
using test::same_bytes;
using test::stored_as;
using test::worst_error;

/// Sequences of random keys and values in a cache whose pages are handed out in shuffled order.
struct Cache {
  PagedKv kv;
  std::vector<unsigned char> pool;
  std::vector<std::vector<int32_t>> tables;  ///< per sequence
  std::vector<std::vector<float>> keys, values;

  Cache(const std::vector<int64_t>& lengths, int64_t num_kv_heads, int64_t head_dim,
        int64_t page_size, DType dtype = DType::F32) {
    kv.dtype = dtype;
    kv.num_kv_heads = num_kv_heads;
    kv.head_dim = head_dim;
    kv.page_size = page_size;
    kv.page_stride = 2 * num_kv_heads * page_size * head_dim + 5;
    std::vector<int32_t> pages;
    for (const int64_t length : lengths) {
      tables.emplace_back((length + page_size - 1) / page_size);
      pages.resize(pages.size() + tables.back().size());
    }
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), std::mt19937_64(5));
    // NaN where nothing was appended: reading it would show.
    pool = stored_as(std::vector<float>(pages.size() * static_cast<size_t>(kv.page_stride), NAN),
                     dtype);
    kv.pool = pool.data();
    size_t next = 0;
    ThreadPool threads(1);
    for (size_t s = 0; s < lengths.size(); ++s) {
      for (int32_t& page : tables[s]) page = pages[next++];
      const auto count = static_cast<size_t>(lengths[s] * num_kv_heads * head_dim);
      keys.push_back(random_floats(count, 100 + s));
      values.push_back(random_floats(count, 200 + s));
      std::vector<int32_t> positions(static_cast<size_t>(lengths[s]));
      std::iota(positions.begin(), positions.end(), 0);
      const std::vector<const int32_t*> block_tables(positions.size(), tables[s].data());
      kernels::kv_append(kv, keys[s].data(), values[s].data(), num_kv_heads * head_dim,
                         block_tables.data(), positions.data(), lengths[s], threads);
    }
  }
  Cache(const Cache&) = delete;

  const float* page(size_t sequence, size_t index) const {
    return static_cast<const float*>(kv.pool) + tables[sequence][index] * kv.page_stride;
  }
};

/// Queries for chosen (sequence, position) pairs.
struct Queries {
  std::vector<float> q;
  std::vector<int32_t> positions;
  std::vector<const int32_t*> block_tables;
  AttentionArgs args;

  Queries(const Cache& cache, const std::vector<std::pair<size_t, int32_t>>& tokens,
          int64_t num_heads, float q_scale) {
    const int64_t width = num_heads * cache.kv.head_dim;
    args.q_stride = width + 2;
    q = random_floats(tokens.size() * static_cast<size_t>(args.q_stride), 300, q_scale);
    for (const auto& [sequence, position] : tokens) {
      positions.push_back(position);
      block_tables.push_back(cache.tables[sequence].data());
    }
    args.q = q.data();
    args.kv = cache.kv;
    args.block_tables = block_tables.data();
    args.positions = positions.data();
    args.num_tokens = static_cast<int64_t>(tokens.size());
    args.num_heads = num_heads;
    args.scale = 1.0F / std::sqrt(static_cast<float>(cache.kv.head_dim));
  }
  Queries(const Queries&) = delete;

  size_t outputs() const {
    return static_cast<size_t>(args.num_tokens * args.num_heads * args.kv.head_dim);
  }
};

struct Shape {
  int64_t num_heads, num_kv_heads, head_dim, page_size;
};
constexpr Shape kShapes[] = {{1, 1, 1, 1},   {4, 4, 5, 3},    {6, 2, 64, 16},
                             {8, 1, 71, 16}, {3, 3, 128, 32}, {4, 2, 80, 7}};

}  // namespace

TEST_CASE("kv_append: puts each token's heads into its page") {
  const Cache cache({5, 9}, 2, 3, 4);
  for (size_t s = 0; s < 2; ++s) {
    for (size_t p = 0; p < (s == 0 ? 5U : 9U); ++p) {
      const float* page = cache.page(s, p / 4);
      for (size_t head = 0; head < 2; ++head) {
        for (size_t d = 0; d < 3; ++d) {
          CHECK(page[(head * 4 + p % 4) * 3 + d] == cache.keys[s][(p * 2 + head) * 3 + d]);
          CHECK(page[24 + (head * 4 + p % 4) * 3 + d] == cache.values[s][(p * 2 + head) * 3 + d]);
        }
      }
    }
  }
}

TEST_CASE("kv_append: rounds to the cache's dtype and keeps F16 finite") {
  ThreadPool pool(1);
  const std::vector<float> k{1.0F, 1.0F + 0x1p-11F, 70000.0F, -1e30F};
  const int32_t table[] = {0};
  const int32_t* const tables[] = {table};
  const int32_t positions[] = {0};
  for (const DType dtype : {DType::F16, DType::BF16}) {
    std::vector<uint16_t> page(8);
    PagedKv kv{page.data(), dtype, 8, 1, 4, 1};
    kernels::kv_append(kv, k.data(), k.data(), 4, tables, positions, 1, pool);
    for (size_t i = 0; i < 8; ++i) {
      if (dtype == DType::BF16) {
        CHECK(page[i] == kernels::float_to_bfloat16(k[i % 4]));
      } else {
        const uint16_t want[] = {0x3C00, 0x3C00, 0x7BFF, 0xFBFF};
        CHECK(page[i] == want[i % 4]);
      }
    }
  }
}

TEST_CASE("attention: equals the F64 reference over shapes and masks and dtypes on every ISA") {
  ThreadPool pool(2);
  int round = 0;
  for (const Shape& shape : kShapes) {
    constexpr DType kCacheDTypes[] = {DType::F32, DType::BF16, DType::F16};
    const Cache cache({1, 17, 70}, shape.num_kv_heads, shape.head_dim, shape.page_size,
                      kCacheDTypes[round++ % 3]);
    const std::vector<float> slopes = random_floats(static_cast<size_t>(shape.num_heads), 9, 0.3F);
    for (const float q_scale : {1.0F, 30.0F}) {
      for (const bool alibi : {false, true}) {
        for (const int64_t window : {0, 1, 6, 64}) {
          Queries queries(cache, {{0, 0}, {1, 16}, {2, 69}, {2, 3}, {1, 0}}, shape.num_heads,
                          q_scale);
          queries.args.alibi_slopes = alibi ? slopes.data() : nullptr;
          queries.args.window = window;
          std::vector<float> want(queries.outputs());
          kernels::reference::attention(want.data(), queries.args);
          for (const Isa isa : kernels::available_isas()) {
            CAPTURE(shape.head_dim);
            CAPTURE(q_scale);
            CAPTURE(alibi);
            CAPTURE(window);
            CAPTURE(kernels::isa_name(isa));
            std::vector<float> got(want.size(), NAN);
            kernels::cpu::attention(isa, got.data(), queries.args, pool);
            // A score of this size is off by its own rounding, and its weight in proportion.
            const double score = q_scale + (alibi ? 20.0 : 0.0);
            CHECK(worst_error(got, want, test::kAttentionTolerance, score) <= 1.0);
          }
        }
      }
    }
  }
}

TEST_CASE("attention: a token's result has the same bits whatever tokens and threads share it") {
  ThreadPool one(1);
  ThreadPool three(3);
  for (const Shape& shape : kShapes) {
    const Cache cache({40, 300}, shape.num_kv_heads, shape.head_dim, shape.page_size);
    std::vector<std::pair<size_t, int32_t>> tokens;
    for (int32_t p = 0; p < 300; ++p) {
      tokens.emplace_back(1, p);
      if (p < 40) tokens.emplace_back(0, p);
    }
    Queries queries(cache, tokens, shape.num_heads, 1.0F);
    for (const Isa isa : kernels::available_isas()) {
      CAPTURE(shape.head_dim);
      CAPTURE(kernels::isa_name(isa));
      std::vector<float> whole(queries.outputs());
      kernels::cpu::attention(isa, whole.data(), queries.args, three);
      std::vector<float> parts(whole.size());
      for (int64_t t = 0; t < queries.args.num_tokens;) {
        AttentionArgs part = queries.args;
        part.num_tokens = std::min<int64_t>(1 + t % 7, queries.args.num_tokens - t);
        part.q += t * part.q_stride;
        part.positions += t;
        part.block_tables += t;
        kernels::cpu::attention(isa, parts.data() + t * shape.num_heads * shape.head_dim, part,
                                one);
        t += part.num_tokens;
      }
      CHECK(same_bytes(whole, parts));
    }
  }
}

TEST_CASE("attention: a long sequence is cut at the same places for any tokens and threads") {
  ThreadPool one(1);
  ThreadPool eight(8);
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
    const Cache cache({1500}, 2, 40, 16, dtype);
    for (const int64_t window : {0, 700}) {
      Queries queries(cache, {{0, 5}, {0, 511}, {0, 512}, {0, 1022}, {0, 1023}, {0, 1499}}, 6,
                      1.0F);
      queries.args.window = window;
      std::vector<float> want(queries.outputs());
      kernels::reference::attention(want.data(), queries.args);
      for (const Isa isa : kernels::available_isas()) {
        CAPTURE(dtype_name(dtype));
        CAPTURE(window);
        CAPTURE(kernels::isa_name(isa));
        std::vector<float> whole(want.size(), NAN);
        kernels::cpu::attention(isa, whole.data(), queries.args, one);
        CHECK(worst_error(whole, want, test::kAttentionTolerance, 1.0) <= 1.0);
        for (int64_t t = 0; t < queries.args.num_tokens; ++t) {
          AttentionArgs single = queries.args;
          single.num_tokens = 1;
          single.q += t * single.q_stride;
          single.positions += t;
          single.block_tables += t;
          std::vector<float> y(6 * 40, NAN);
          kernels::cpu::attention(isa, y.data(), single, eight);
          CHECK(std::memcmp(y.data(), whole.data() + t * 240, 240 * sizeof(float)) == 0);
        }
      }
    }
  }
}

TEST_CASE("attention: keys that score minus infinity have no weight") {
  ThreadPool pool(1);
  Cache cache({600}, 1, 16, 16);
  // A whole chunk of them, and then one that counts.
  std::vector<float> k(16, -INFINITY);
  std::vector<float> v(16, 1.0F);
  std::vector<float> q(16, 1.0F);
  const int32_t* const tables[] = {cache.tables[0].data()};
  for (int32_t p = 0; p < 600; ++p) {
    if (p == 599) {
      k.assign(16, 0.5F);
      v.assign(16, 3.0F);
    }
    kernels::kv_append(cache.kv, k.data(), v.data(), 16, tables, &p, 1, pool);
  }
  const int32_t last = 599;
  AttentionArgs args;
  args.q = q.data();
  args.q_stride = 16;
  args.kv = cache.kv;
  args.block_tables = tables;
  args.positions = &last;
  args.num_tokens = args.num_heads = 1;
  for (const Isa isa : kernels::available_isas()) {
    CAPTURE(kernels::isa_name(isa));
    std::vector<float> y(16, NAN);
    kernels::cpu::attention(isa, y.data(), args, pool);
    for (const float value : y) CHECK(value == 3.0F);
  }
}

TEST_CASE("attention: a head's result has the same bits whatever heads share the rank") {
  ThreadPool pool(2);
  const Cache cache({33}, 4, 24, 8);
  Queries queries(cache, {{0, 32}, {0, 10}}, 8, 1.0F);
  for (const Isa isa : kernels::available_isas()) {
    CAPTURE(kernels::isa_name(isa));
    std::vector<float> whole(queries.outputs());
    kernels::cpu::attention(isa, whole.data(), queries.args, pool);
    for (int64_t rank = 0; rank < 4; ++rank) {
      // One KV head and its two query heads, as tensor parallelism of 4 leaves them: the rank's
      // cache starts at its own head, with the same distances inside a page.
      std::vector<float> local(2 * 2 * 24);
      Cache own({33}, 1, 24, 8);
      for (size_t p = 0; p < 33; ++p) {
        for (size_t d = 0; d < 24; ++d) {
          const size_t from = (p * 4 + static_cast<size_t>(rank)) * 24 + d;
          auto* page = const_cast<float*>(own.page(0, p / 8));
          page[(p % 8) * 24 + d] = cache.keys[0][from];
          page[(8 + p % 8) * 24 + d] = cache.values[0][from];
        }
      }
      AttentionArgs args = queries.args;
      args.kv = own.kv;
      args.num_heads = 2;
      args.q += rank * 2 * 24;
      const std::vector<const int32_t*> tables(2, own.tables[0].data());
      args.block_tables = tables.data();
      kernels::cpu::attention(isa, local.data(), args, pool);
      for (int64_t t = 0; t < 2; ++t) {
        CHECK(std::memcmp(local.data() + t * 48, whole.data() + t * 192 + rank * 48,
                          48 * sizeof(float)) == 0);
      }
    }
  }
}

}  // namespace llmctl
