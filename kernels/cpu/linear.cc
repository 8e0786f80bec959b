// The matrix product, cut into ranges of panels that threads claim; and its generic version.
#include "kernels/linear.h"

#include <algorithm>
#include <bit>
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

const cpu::LinearKernel cpu::kGenericLinear = {PackedAs::kF32, token_tile,
                                               panels_at_once<kMostTokens>, run_linear};

namespace {

/// Columns of a tile that are packed at once.
constexpr int64_t kPackColumns = 128;

const cpu::LinearKernel& linear_kernel(Isa isa, Activations activations) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) {
    const bool dots = activations == Activations::kBF16 && has_bf16_products();
    return dots ? cpu::kAvx512Bf16Linear : cpu::kAvx512Linear;
  }
  if (isa == Isa::kAvx2) return cpu::kAvx2Linear;
#endif
  static_cast<void>(isa);
  static_cast<void>(activations);
  return cpu::kGenericLinear;
}

/// The bits of `x` rounded to BF16 in the high half, zeros below.
uint32_t rounded_to_bf16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7FFFU + (bits >> 16 & 1U)) & 0xFFFF'0000U;
  // A NaN whose low bits alone say so must stay one.
  return (bits & 0x7FFF'FFFFU) > 0x7F80'0000U ? (bits & 0xFFFF'0000U) | 0x0040'0000U : rounded;
}

/// `count` activations of a row as the kernel takes them.
void round_row(float* to, const float* x, int64_t count, cpu::PackedAs as) {
  if (as == cpu::PackedAs::kF32) {
    for (int64_t i = 0; i < count; ++i) to[i] = std::bit_cast<float>(rounded_to_bf16(x[i]));
    return;
  }
  for (int64_t i = 0; i + 2 <= count; i += 2) {
    to[i / 2] = std::bit_cast<float>(rounded_to_bf16(x[i]) >> 16 | rounded_to_bf16(x[i + 1]));
  }
  if (count % 2 != 0) to[count / 2] = std::bit_cast<float>(rounded_to_bf16(x[count - 1]) >> 16);
}

/// As LinearPanels::x says; an element is an activation or a pair of them.
void pack_activations(Isa isa, float* packed, const float* x, int64_t columns,
                      const cpu::TokenTiles& tiles, bool round, cpu::PackedAs as,
                      ThreadPool& pool) {
  constexpr auto kWidth = static_cast<int64_t>(sizeof(float));
  const cpu::Transpose transpose = cpu::find_transpose(isa, kWidth);
  const int64_t group = as == cpu::PackedAs::kBF16Pairs ? 2 : 1;
  const int64_t elements = (columns + group - 1) / group;  // of a token
  const int64_t num_blocks = (columns + kPackColumns - 1) / kPackColumns;
  const auto body = [&](int64_t i) {
    const int64_t column = i / tiles.num_tiles * kPackColumns;
    const int64_t count = std::min(kPackColumns, columns - column);
    const int64_t token = tiles.first(i % tiles.num_tiles);
    const int64_t num_tokens = tiles.first(i % tiles.num_tiles + 1) - token;
    const float* rows = x + token * columns + column;
    int64_t stride = columns;
    alignas(64) float rounded[cpu::kMostTileTokens * kPackColumns];
    if (round) {
      for (int64_t t = 0; t < num_tokens; ++t) {
        round_row(rounded + t * kPackColumns, rows + t * columns, count, as);
      }
      rows = rounded;
      stride = kPackColumns;
    }
    transpose(reinterpret_cast<char*>(packed + token * elements + column / group * num_tokens),
              num_tokens * kWidth, reinterpret_cast<const char*>(rows), stride * kWidth, num_tokens,
              (count + group - 1) / group, false);
  };
  cpu::for_each_row(pool, num_blocks * tiles.num_tiles,
                    tiles.num_tokens * kPackColumns / tiles.num_tiles, body);
}

}  // namespace

int64_t linear_scratch_floats(int64_t num_tokens, int64_t columns) { return num_tokens * columns; }

void cpu::linear(Isa isa, float* y, const float* x, const PanelMatrix& w, const float* bias,
                 int64_t num_tokens, int64_t y_stride, Activations activations, float* scratch,
                 ThreadPool& pool) {
  const bool round = activations == Activations::kBF16;
  if (w.quantization || !has_panels(w.dtype) || (round && w.dtype != DType::BF16)) {
    throw Error(ErrorCode::kInternal, "linear: no kernel for " + std::string(dtype_name(w.dtype)) +
                                          " weights" + (round ? " and BF16 activations" : ""));
  }
  if (num_tokens <= 0 || w.rows <= 0) return;
  const LinearKernel& kernel = linear_kernel(isa, activations);
  const auto width = static_cast<int64_t>(dtype_bytes(w.dtype));
  const auto bytes = static_cast<int64_t>(std::max<size_t>(1, panel_bytes(w.dtype, w.columns)));
  const int64_t token_tile = kernel.token_tile(w.dtype);
  LinearPanels args{y, x, w, bytes / width, bias, num_tokens, y_stride, 0, 0};
  if (num_tokens > 1) {
    const TokenTiles tiles(num_tokens, token_tile);
    pack_activations(isa, scratch, x, w.columns, tiles, round, kernel.packed_as, pool);
    args.x = scratch;
  } else if (round) {
    round_row(scratch, x, w.columns, kernel.packed_as);
    args.x = scratch;
  }
  const int64_t num_panels = (w.rows + kPanelRows - 1) / kPanelRows;
  // One tile of tokens takes 128 KiB of weights a claim, small enough that a thread which loses its
  // core does not hold up the others. Several pass over what stays in L2, and read all activations
  // for each claim: 512 KiB, but four claims to a thread.
  const int64_t at_once = kernel.panels_at_once(num_tokens);
  const bool several = num_tokens > token_tile;
  const int64_t share = num_panels / (4 * pool.num_threads());
  const int64_t wanted =
      several ? std::min((int64_t{512} << 10) / bytes, share) : (int64_t{128} << 10) / bytes;
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
            int64_t y_stride, Activations activations, float* scratch, ThreadPool& pool) {
  cpu::linear(active_isa(), y, x, w, bias, num_tokens, y_stride, activations, scratch, pool);
}

}  // namespace llmctl::kernels
