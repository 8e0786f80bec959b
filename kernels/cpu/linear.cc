// The matrix product, cut into ranges of panels that threads claim; and its generic version.
#include "kernels/linear.h"

#include <algorithm>
#include <functional>
#include <string>

#include "formats/core/error.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/simd_generic.h"
#include "kernels/cpu/threads.h"
#include "kernels/cpu/transpose.h"

// The body is written over the Simd of the header above.
#include "kernels/cpu/linear_body.h"

namespace llmctl::kernels {

const cpu::LinearKernel cpu::kGenericLinear = {kTokenTile, kFewTokens, panels_at_once, run_linear};

namespace {

const cpu::LinearKernel& linear_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return cpu::kAvx512Linear;
  if (isa == Isa::kAvx2) return cpu::kAvx2Linear;
#endif
  static_cast<void>(isa);
  return cpu::kGenericLinear;
}

/// As LinearPanels::x says.
void pack_activations(Isa isa, float* packed, const float* x, int64_t columns,
                      const cpu::TokenTiles& tiles, ThreadPool& pool) {
  constexpr auto kWidth = static_cast<int64_t>(sizeof(float));
  const cpu::Transpose transpose = cpu::find_transpose(isa, kWidth);
  const int64_t num_blocks = (columns + cpu::kBlockColumns - 1) / cpu::kBlockColumns;
  const auto body = [&](int64_t i) {
    const int64_t column = i / tiles.num_tiles * cpu::kBlockColumns;
    const int64_t count = std::min(cpu::kBlockColumns, columns - column);
    const int64_t token = tiles.first(i % tiles.num_tiles);
    const int64_t num_tokens = tiles.first(i % tiles.num_tiles + 1) - token;
    transpose(reinterpret_cast<char*>(packed + column * tiles.num_tokens + token * count),
              num_tokens * kWidth, reinterpret_cast<const char*>(x + token * columns + column),
              columns * kWidth, num_tokens, count, false);
  };
  cpu::for_each_row(pool, num_blocks * tiles.num_tiles,
                    tiles.num_tokens * cpu::kBlockColumns / tiles.num_tiles, body);
}

}  // namespace

int64_t linear_scratch_floats(int64_t num_tokens, int64_t columns) {
  return num_tokens > 1 ? num_tokens * columns : 0;
}

void cpu::linear(Isa isa, float* y, const float* x, const PanelMatrix& w, const float* bias,
                 int64_t num_tokens, int64_t y_stride, float* scratch, ThreadPool& pool) {
  if (!has_panels(w.dtype)) {
    throw Error(ErrorCode::kInternal,
                "linear: no kernel for " + std::string(dtype_name(w.dtype)) + " weights");
  }
  if (num_tokens <= 0 || w.rows <= 0) return;
  const LinearKernel& kernel = linear_kernel(isa);
  const auto width = static_cast<int64_t>(dtype_bytes(w.dtype));
  const auto bytes = static_cast<int64_t>(std::max<size_t>(1, panel_bytes(w.dtype, w.columns)));
  LinearPanels args{y, x, w, bytes / width, bias, num_tokens, y_stride, 0, 0};
  const bool few = num_tokens <= kernel.few_tokens;
  if (num_tokens > 1) {
    const TokenTiles tiles(num_tokens, few ? num_tokens : kernel.token_tile);
    pack_activations(isa, scratch, x, w.columns, tiles, pool);
    args.x = scratch;
  }
  const int64_t num_panels = (w.rows + kPanelRows - 1) / kPanelRows;
  // With few tokens 128 KiB of weights a claim, small enough that a thread which loses its core
  // does not hold up the others; with many, 96 rows, because each claim reads all activations.
  const int64_t at_once = kernel.panels_at_once(num_tokens);
  const int64_t wanted = few ? (int64_t{128} << 10) / bytes : 6;
  const int64_t chunk = std::max(at_once, wanted / at_once * at_once);
  const auto body = [&](int64_t i) {
    LinearPanels part = args;
    part.panel_begin = i * chunk;
    part.panel_end = std::min(num_panels, (i + 1) * chunk);
    kernel.run(part);
  };
  // By reference: the pool's std::function then needs no memory.
  // Eight tokens take about as long as reading the weights from memory.
  pool.parallel_for((num_panels + chunk - 1) / chunk, std::ref(body),
                    num_panels * bytes * ((num_tokens + 7) / 8));
}

void linear(float* y, const float* x, const PanelMatrix& w, const float* bias, int64_t num_tokens,
            int64_t y_stride, float* scratch, ThreadPool& pool) {
  cpu::linear(active_isa(), y, x, w, bias, num_tokens, y_stride, scratch, pool);
}

}  // namespace llmctl::kernels
