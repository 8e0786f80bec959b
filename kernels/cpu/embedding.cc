#include "kernels/embedding.h"

#include <algorithm>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/threads.h"

namespace llmctl::kernels {
namespace {

/// Elements [begin, begin + count) of a row, as stored. `group` is panel_group.
template <typename Stored, int64_t kGroup>
void gather(void* to, const void* panel, int64_t lane, int64_t begin, int64_t count) {
  auto* out = static_cast<Stored*>(to);
  const Stored* from = static_cast<const Stored*>(panel) + lane * kGroup;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t column = begin + i;
    out[i] = from[column / kGroup * kPanelRows * kGroup + column % kGroup];
  }
}

}  // namespace

void cpu::embedding(Isa isa, float* y, const PanelMatrix& table, const int32_t* ids,
                    int64_t first_row, int64_t num_tokens, ThreadPool& pool) {
  const auto read = table.dtype == DType::F32   ? gather<float, 1>
                    : table.dtype == DType::F16 ? gather<uint16_t, 1>
                                                : gather<uint16_t, 2>;
  const int64_t width = table.columns;
  const auto body = [&](int64_t t) {
    const int64_t row = ids[t] - first_row;
    if (row < 0 || row >= table.rows) {
      std::fill_n(y + t * width, width, 0.0F);
      return;
    }
    const PanelMatrix panel =
        panel_rows(table, row / kPanelRows * kPanelRows, row % kPanelRows + 1);
    constexpr int64_t kPart = 512;  // a multiple of every panel_group
    float part[kPart];
    for (int64_t begin = 0; begin < width; begin += kPart) {
      const int64_t count = std::min(kPart, width - begin);
      read(part, panel.data, row % kPanelRows, begin, count);
      convert(isa, y + t * width + begin, DType::F32, part, table.dtype, count, Overflow::kInf);
    }
  };
  // Each element read brings in the line of a whole panel.
  for_each_row(pool, num_tokens, width * kPanelRows / 2, body);
}

void embedding(float* y, const PanelMatrix& table, const int32_t* ids, int64_t first_row,
               int64_t num_tokens, ThreadPool& pool) {
  cpu::embedding(active_isa(), y, table, ids, first_row, num_tokens, pool);
}

}  // namespace llmctl::kernels
