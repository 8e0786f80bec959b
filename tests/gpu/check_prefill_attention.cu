#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/prefill_attention.h"
#include "kernels/ops.h"
#include "tests/gpu/checker.h"

namespace llmctl::gpu {
namespace {

namespace cuda = kernels::cuda;
namespace reference = kernels::reference;

struct Run {
  int32_t position, tokens;  ///< of its first token; how many
};

struct Case {
  int32_t heads, kv_heads, head_dim, page_size;
  std::vector<Run> runs;
  DType dtype = DType::F16;
  bool alibi = false;
  int32_t window = 0;
};

void check_case(const Checker& c, const Case& t, uint64_t seed) {
  const cudaStream_t s = c.stream.handle;
  const auto num_runs = static_cast<int64_t>(t.runs.size());
  int64_t pages_each = 1, rows = 0;
  int32_t most = 0;
  std::vector<int32_t> first_rows, lengths, positions;
  for (const Run& run : t.runs) {
    pages_each =
        std::max<int64_t>(pages_each, (run.position + run.tokens + t.page_size - 1) / t.page_size);
    // A gap between runs: rows that nobody may write.
    first_rows.push_back(static_cast<int32_t>(rows));
    lengths.push_back(run.tokens);
    positions.push_back(run.position);
    rows += run.tokens;
    most = std::max(most, run.tokens);
  }
  const int64_t row_elements = t.heads * t.head_dim;
  const int64_t page_elements = 2 * int64_t{t.kv_heads} * t.head_dim * t.page_size;
  const int64_t num_pages = num_runs * pages_each;
  std::vector<int32_t> tables(static_cast<size_t>(num_pages));
  for (size_t i = 0; i < tables.size(); ++i) {
    tables[i] = static_cast<int32_t>(num_pages - 1 - static_cast<int64_t>(i));
  }
  // NaN where no token has been: behind each run, and before the window of its first token.
  std::vector<float> values = random_values(num_pages * page_elements, 1.0F, seed);
  for (int64_t r = 0; r < num_runs; ++r) {
    const Run& run = t.runs[static_cast<size_t>(r)];
    const int64_t first = t.window > 0 ? std::max(0, run.position + 1 - t.window) : 0;
    for (int64_t p = 0; p < pages_each * t.page_size; ++p) {
      if (p >= first && p < run.position + run.tokens) continue;
      const int64_t page = tables[static_cast<size_t>(r * pages_each + p / t.page_size)];
      for (int64_t part = 0; part < 2 * t.kv_heads; ++part) {
        std::fill_n(values.begin() + page * page_elements +
                        (part * t.page_size + p % t.page_size) * t.head_dim,
                    t.head_dim, NAN);
      }
    }
  }
  const Tensor pool = make_tensor(values, t.dtype, s);
  const Tensor q = random_tensor(rows * row_elements, 1.0F, seed + 1, t.dtype, s);
  std::vector<float> slopes;
  for (int32_t h = 0; h < t.heads; ++h) {
    slopes.push_back(std::pow(2.0F, -0.5F * static_cast<float>(h + 1)));
  }
  const Tensor slopes_device = make_tensor(slopes, DType::F32, s);
  const float scale = 1.0F / std::sqrt(static_cast<float>(t.head_dim));

  std::vector<float> want(q.values.size());
  parallel_for(num_runs, [&](int64_t r) {
    const Run& run = t.runs[static_cast<size_t>(r)];
    const std::vector<const int32_t*> block_tables(static_cast<size_t>(run.tokens),
                                                   tables.data() + r * pages_each);
    std::vector<int32_t> each(static_cast<size_t>(run.tokens));
    for (int32_t i = 0; i < run.tokens; ++i) each[static_cast<size_t>(i)] = run.position + i;
    const int64_t first = first_rows[static_cast<size_t>(r)] * row_elements;
    kernels::AttentionArgs args;
    args.q = q.values.data() + first;
    args.q_stride = row_elements;
    args.kv.pool = const_cast<float*>(pool.values.data());
    args.kv.page_stride = page_elements;
    args.kv.num_kv_heads = t.kv_heads;
    args.kv.head_dim = t.head_dim;
    args.kv.page_size = t.page_size;
    args.block_tables = block_tables.data();
    args.positions = each.data();
    args.num_tokens = run.tokens;
    args.num_heads = t.heads;
    args.scale = scale;
    args.alibi_slopes = t.alibi ? slopes.data() : nullptr;
    args.window = t.window;
    reference::attention(want.data() + first, args);
  });

  const Buffer table_device = upload_ints(tables, s), first_device = upload_ints(first_rows, s),
               length_device = upload_ints(lengths, s), position_device = upload_ints(positions, s);
  std::string name = "prefill_attention " + std::to_string(t.heads) + "/" +
                     std::to_string(t.kv_heads) + " d" + std::to_string(t.head_dim) + " page" +
                     std::to_string(t.page_size) + " " + dtype_word(t.dtype) + " runs";
  for (const Run& run : t.runs) {
    name += " " + std::to_string(run.position) + "+" + std::to_string(run.tokens);
  }
  if (t.alibi) name += " alibi";
  if (t.window > 0) name += " window" + std::to_string(t.window);
  c.run(name, t.dtype, want, t.dtype == DType::F16 ? 2e-3 : 1e-2, [&](void* y) {
    cuda::prefill_attention(y,
                            {.q = q.data(),
                             .q_stride = row_elements,
                             .kv = {.pool = pool.data(),
                                    .page_stride = page_elements,
                                    .num_kv_heads = t.kv_heads,
                                    .head_dim = t.head_dim,
                                    .page_size = t.page_size,
                                    .dtype = t.dtype},
                             .tables = {.pages = table_device.as<int32_t>(), .stride = pages_each},
                             .first_rows = first_device.as<int32_t>(),
                             .num_tokens = length_device.as<int32_t>(),
                             .first_positions = position_device.as<int32_t>(),
                             .num_runs = num_runs,
                             .max_tokens = most,
                             .num_heads = t.heads,
                             .scale = scale,
                             .alibi_slopes = t.alibi ? slopes_device.buffer.as<float>() : nullptr,
                             .window = t.window},
                            c.stream);
  });
}

}  // namespace

void check_prefill_attention(const Checker& c) {
  std::vector<Case> cases = {
      {4, 4, 64, 32, {{0, 1}, {0, 63}, {0, 64}, {0, 65}}},
      {4, 2, 64, 16, {{5, 70}, {64, 64}, {130, 3}}, DType::BF16},
      {2, 1, 128, 32, {{0, 130}, {31, 33}}},
      {2, 2, 80, 16, {{7, 20}}, DType::BF16, true},
      {3, 1, 256, 32, {{40, 30}}},
      {1, 1, 8, 16, {{0, 17}}},
      {2, 2, 40, 64, {{60, 70}}, DType::F16, true},
      {2, 2, 64, 32, {{0, 100}, {200, 40}}, DType::F16, false, 33},
      {2, 1, 64, 32, {{150, 66}}, DType::BF16, true, 1},
  };
  if (!c.small) {
    cases.push_back({32, 8, 128, 32, {{0, 2048}}});
    cases.push_back({32, 32, 128, 16, {{0, 512}, {1000, 700}, {3, 1}}, DType::BF16});
    cases.push_back({71, 1, 64, 32, {{100, 300}}, DType::BF16});
    cases.push_back({8, 8, 256, 32, {{0, 600}}});
  }
  uint64_t seed = 80000;
  for (const Case& t : cases) check_case(c, t, seed += 10);
}

}  // namespace llmctl::gpu
