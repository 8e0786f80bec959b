#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cuda/decode_attention.h"
#include "kernels/ops.h"
#include "tests/gpu/checker.h"

namespace llmctl::gpu {
namespace {

namespace cuda = kernels::cuda;
namespace reference = kernels::reference;

}  // namespace

void check_attention(const Checker& c) {
  const cudaStream_t s = c.stream.handle;
  struct Case {
    int32_t heads, kv_heads, head_dim, page_size;
    std::vector<int32_t> lens;
    DType dtype = DType::F16;
    bool alibi = false;
    int32_t window = 0;
    int32_t splits = 0;        ///< 0: what decode_attention_splits says
    int64_t unused_pages = 0;  ///< in front of those in use, to pass 2^31 elements
  };
  std::vector<Case> cases = {
      {4, 4, 64, 32, {1, 31, 32, 33, 0, 257}},
      {4, 4, 64, 32, {1, 31, 32, 33, 0, 257}, DType::BF16, false, 0, 1},
      {8, 2, 128, 32, {5, 64, 65, 500}},
      {8, 2, 128, 16, {5, 64, 65, 500}, DType::BF16, true},
      {14, 2, 64, 32, {130, 1, 700}, DType::BF16},
      {32, 2, 128, 64, {600, 256, 257}},
      {6, 3, 80, 16, {129, 77}},
      {5, 5, 96, 32, {300}, DType::F16, true},
      {3, 1, 256, 32, {200, 90}},
      {2, 2, 40, 32, {64, 320, 319, 321}, DType::BF16},
      {8, 8, 128, 32, {400, 100, 37}, DType::F16, false, 100},
      {8, 2, 128, 32, {400, 100, 37}, DType::F16, true, 33, 5},
      {4, 1, 128, 32, {1000}, DType::F16, false, 1},
  };
  if (!c.small) {
    cases.push_back({32, 32, 128, 32, {2048, 1999}});
    cases.push_back({32, 8, 128, 32, {8192, 5, 4097}, DType::BF16});
    cases.push_back({71, 1, 64, 32, {1500}, DType::BF16});
    cases.push_back({2, 2, 128, 32, {300}, DType::F16, false, 0, 0, 140000});
  }
  uint64_t seed = 30000;
  for (const Case& t : cases) {
    seed += 10;
    const auto num_sequences = static_cast<int64_t>(t.lens.size());
    int64_t pages_each = 1;
    for (const int32_t len : t.lens) {
      pages_each = std::max<int64_t>(pages_each, (len + t.page_size - 1) / t.page_size);
    }
    const int64_t row = t.kv_heads * t.head_dim, page_elements = 2 * row * t.page_size;
    const int64_t used_pages = num_sequences * pages_each;
    // Scattered but unique: pages in reverse order.
    std::vector<int32_t> tables(static_cast<size_t>(used_pages));
    for (size_t i = 0; i < tables.size(); ++i) {
      tables[i] = static_cast<int32_t>(t.unused_pages + used_pages - 1 - static_cast<int64_t>(i));
    }
    // NaN beyond each length: a kernel that multiplies a masked row by zero is caught.
    std::vector<float> values = random_values(used_pages * page_elements, 1.0F, seed);
    for (int64_t sequence = 0; sequence < num_sequences; ++sequence) {
      for (int64_t p = t.lens[static_cast<size_t>(sequence)]; p < pages_each * t.page_size; ++p) {
        const int64_t page =
            tables[static_cast<size_t>(sequence * pages_each + p / t.page_size)] - t.unused_pages;
        for (int64_t part = 0; part < 2 * t.kv_heads; ++part) {
          std::fill_n(values.begin() + page * page_elements +
                          (part * t.page_size + p % t.page_size) * t.head_dim,
                      t.head_dim, NAN);
        }
      }
    }
    const Tensor used = make_tensor(values, t.dtype, s);
    std::optional<Buffer> large;
    void* pool = used.data();
    if (t.unused_pages > 0) {
      const size_t offset = static_cast<size_t>(t.unused_pages * page_elements) * 2;
      large.emplace(offset + used.raw.size());
      large->poison(s);
      LLMCTL_CUDA_CHECK(cudaMemcpyAsync(large->as<char>() + offset, used.data(), used.raw.size(),
                                        cudaMemcpyDeviceToDevice, s));
      pool = large->data();
    }
    const Tensor q =
        random_tensor(num_sequences * t.heads * t.head_dim, 1.0F, seed + 1, t.dtype, s);
    std::vector<float> slopes;
    for (int32_t h = 0; h < t.heads; ++h)
      slopes.push_back(std::pow(2.0F, -0.5F * static_cast<float>(h + 1)));
    const Tensor slopes_device = make_tensor(slopes, DType::F32, s);
    const float scale = 1.0F / std::sqrt(static_cast<float>(t.head_dim));

    std::vector<float> want(q.values.size());
    parallel_for(num_sequences, [&](int64_t i) {
      const int32_t len = t.lens[static_cast<size_t>(i)];
      if (len == 0) return;
      std::vector<int32_t> table(tables.begin() + i * pages_each,
                                 tables.begin() + (i + 1) * pages_each);
      for (int32_t& page : table) page -= static_cast<int32_t>(t.unused_pages);
      const int32_t* const table_data = table.data();
      const int32_t position = len - 1;
      kernels::AttentionArgs args;
      args.q = q.values.data() + i * t.heads * t.head_dim;
      args.q_stride = t.heads * t.head_dim;
      args.kv.pool = const_cast<float*>(used.values.data());
      args.kv.page_stride = page_elements;
      args.kv.num_kv_heads = t.kv_heads;
      args.kv.head_dim = t.head_dim;
      args.kv.page_size = t.page_size;
      args.block_tables = &table_data;
      args.positions = &position;
      args.num_tokens = 1;
      args.num_heads = t.heads;
      args.scale = scale;
      args.alibi_slopes = t.alibi ? slopes.data() : nullptr;
      args.window = t.window;
      reference::attention(want.data() + i * t.heads * t.head_dim, args);
    });

    const int32_t splits = t.splits > 0 ? t.splits
                                        : cuda::decode_attention_splits(
                                              num_sequences, t.heads, t.kv_heads, c.stream.num_sms);
    const Buffer scratch(
        cuda::decode_attention_scratch_bytes(num_sequences, t.heads, t.head_dim, splits));
    scratch.poison(s);
    // Only the arrival counters at its front must be zero.
    LLMCTL_CUDA_CHECK(cudaMemsetAsync(
        scratch.data(), 0, static_cast<size_t>(num_sequences * t.heads) * sizeof(int32_t), s));
    const Buffer table_device = upload_ints(tables, s), lens_device = upload_ints(t.lens, s);
    std::string name = "decode_attention " + std::to_string(t.heads) + "/" +
                       std::to_string(t.kv_heads) + " d" + std::to_string(t.head_dim) + " page" +
                       std::to_string(t.page_size) + " " + dtype_word(t.dtype) + " splits" +
                       std::to_string(splits) + " lens";
    for (const int32_t len : t.lens) name += " " + std::to_string(len);
    if (t.alibi) name += " alibi";
    if (t.window > 0) name += " window" + std::to_string(t.window);
    if (t.unused_pages > 0) name += " beyond 2^31 elements";
    // P is rounded to the cache's dtype before it meets V.
    const double bound = t.dtype == DType::F16 ? 2e-3 : 1e-2;
    c.run(name, t.dtype, want, bound, [&](void* y) {
      cuda::decode_attention(y,
                             {.q = q.data(),
                              .q_stride = t.heads * t.head_dim,
                              .kv = {.pool = pool,
                                     .page_stride = page_elements,
                                     .num_kv_heads = t.kv_heads,
                                     .head_dim = t.head_dim,
                                     .page_size = t.page_size,
                                     .dtype = t.dtype},
                              .tables = {.pages = table_device.as<int32_t>(), .stride = pages_each},
                              .seq_lens = lens_device.as<int32_t>(),
                              .num_sequences = num_sequences,
                              .num_heads = t.heads,
                              .scale = scale,
                              .alibi_slopes = t.alibi ? slopes_device.buffer.as<float>() : nullptr,
                              .window = t.window,
                              .num_splits = splits,
                              .scratch = scratch.data()},
                             c.stream);
    });
  }
}

}  // namespace llmctl::gpu
