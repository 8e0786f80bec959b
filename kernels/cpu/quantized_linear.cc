// The quantised product, cut into ranges of panels that threads claim; and its generic version.
#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "formats/core/error.h"
#include "kernels/cpu/simd_generic.h"
#include "kernels/quantized.h"

namespace llmctl::kernels::cpu {
namespace {

/// The integer words of the body, four lanes in arrays.
struct Ints {
  struct I {
    int32_t lane[4];
  };
  struct Pair {
    int16_t value[8];
  };
  struct Nibbles {
    uint16_t word[8];
  };

  static I zero() { return {}; }
  static I set1(int32_t x) { return {{x, x, x, x}}; }
  static Pair load_int8(const char* p) {
    Pair pair;
    for (int i = 0; i < 8; ++i) pair.value[i] = static_cast<signed char>(p[i]);
    return pair;
  }
  static Nibbles load_nibbles(const char* p) {
    Nibbles nibbles;
    std::memcpy(nibbles.word, p, sizeof nibbles.word);
    return nibbles;
  }
  template <int kPair>
  static Pair pair_of(const Nibbles& v) {
    Pair pair;
    for (int i = 0; i < 8; ++i) pair.value[i] = static_cast<int16_t>(v.word[i] >> 4 * kPair & 15);
    return pair;
  }
  static I broadcast_pair(const int16_t* p) { return {{p[0], p[1]}}; }
  static I dot(I sum, const Pair& a, const I& b) {
    for (int i = 0; i < 4; ++i) {
      sum.lane[i] += a.value[2 * i] * b.lane[0] + a.value[2 * i + 1] * b.lane[1];
    }
    return sum;
  }
  static Simd::F to_float(const I& v) {
    return Simd::map([&](int i) { return static_cast<float>(v.lane[i]); });
  }
};

}  // namespace
}  // namespace llmctl::kernels::cpu

// The body is written over the Simd and Ints of the headers above.
#include "kernels/cpu/quantized_body.h"

namespace llmctl::kernels {

const cpu::QuantizedKernel cpu::kGenericQuantized = {"generic", kTokenTile, panels_at_once,
                                                     quantize_activations, run_quantized};

namespace {

std::vector<const cpu::QuantizedKernel*> probe() {
  std::vector<const cpu::QuantizedKernel*> found{&cpu::kGenericQuantized};
#if defined(__x86_64__)
  for (const Isa isa : available_isas()) {
    if (isa == Isa::kAvx2) found.push_back(&cpu::kAvx2Quantized);
    if (isa != Isa::kAvx512) continue;
    found.push_back(&cpu::kAvx512Quantized);
    if (__builtin_cpu_supports("avx512vnni")) found.push_back(&cpu::kAvx512VnniQuantized);
  }
#endif
  return found;
}

int64_t padded(int64_t columns) {
  return (columns + kQuantizedColumns - 1) / kQuantizedColumns * kQuantizedColumns;
}

}  // namespace

std::span<const cpu::QuantizedKernel* const> cpu::quantized_kernels() {
  static const std::vector<const QuantizedKernel*> kernels = probe();
  return kernels;
}

const cpu::QuantizedKernel& cpu::quantized_kernel(Isa isa) {
  const QuantizedKernel* best = &kGenericQuantized;
  for (const QuantizedKernel* kernel : quantized_kernels()) {
    if (kernel->name.starts_with(isa_name(isa))) best = kernel;
  }
  return *best;
}

int64_t quantized_scratch_floats(int64_t num_tokens, int64_t columns) {
  // The smallest blocks take the most scales.
  const int64_t blocks = padded(columns) / quantization_group_sizes().front() + 1;
  return num_tokens * (padded(columns) / 2 + 2 * blocks);
}

void cpu::quantized_linear(const QuantizedKernel& kernel, float* y, const float* x,
                           const PanelMatrix& w, const float* bias, int64_t num_tokens,
                           int64_t y_stride, float* scratch, ThreadPool& pool) {
  const Quantization& q = w.quantization;
  if (!can_quantize(q, w.columns)) {
    throw Error(ErrorCode::kInternal, "quantized_linear: weights that no kernel reads");
  }
  if (num_tokens <= 0 || w.rows <= 0) return;
  QuantizedTask task;
  task.y = y;
  task.w = w;
  task.bias = bias;
  task.num_tokens = num_tokens;
  task.y_stride = y_stride;
  task.token_tile = kernel.token_tile;
  task.padded_columns = padded(w.columns);
  task.block_columns = q.group_size == 0 ? kActivationColumns : q.group_size;
  task.num_blocks = (task.padded_columns + task.block_columns - 1) / task.block_columns;
  task.panel_bytes = quantized_panel_bytes(q, w.columns);
  task.x.scales = scratch;
  task.x.starts = reinterpret_cast<int32_t*>(scratch + num_tokens * task.num_blocks);
  task.x.values = reinterpret_cast<int16_t*>(scratch + 2 * num_tokens * task.num_blocks);
  const TokenTiles tiles(num_tokens, kernel.token_tile);
  const auto quantize_tile = [&](int64_t i) {
    const int64_t first = tiles.first(i);
    QuantizeTask part;
    part.to = {task.x.values + first * task.padded_columns, task.x.scales + first * task.num_blocks,
               task.x.starts + first * task.num_blocks};
    part.x = x + first * w.columns;
    part.columns = w.columns;
    part.padded_columns = task.padded_columns;
    part.block_columns = task.block_columns;
    part.num_tokens = tiles.first(i + 1) - first;
    kernel.quantize(part);
  };
  pool.parallel_for(tiles.num_tiles, std::ref(quantize_tile), num_tokens * w.columns * 4);

  const int64_t num_panels = (w.rows + kPanelRows - 1) / kPanelRows;
  const auto bytes = static_cast<int64_t>(task.panel_bytes);
  const int64_t at_once = kernel.panels_at_once(num_tokens);
  // With one tile 128 KiB of weights a claim, small enough that a thread which loses its core does
  // not hold up the others; with many, few panels, because each is used often.
  const int64_t wanted = tiles.num_tiles == 1 ? (int64_t{128} << 10) / bytes : 6;
  const int64_t chunk = std::max(at_once, wanted / at_once * at_once);
  const auto body = [&](int64_t i) {
    QuantizedTask part = task;
    part.panel_begin = i * chunk;
    part.panel_end = std::min(num_panels, (i + 1) * chunk);
    kernel.run(part);
  };
  // By reference: the pool's std::function then needs no memory.
  pool.parallel_for((num_panels + chunk - 1) / chunk, std::ref(body),
                    num_panels * bytes * ((num_tokens + 3) / 4));
}

void quantized_linear(float* y, const float* x, const PanelMatrix& w, const float* bias,
                      int64_t num_tokens, int64_t y_stride, float* scratch, ThreadPool& pool) {
  static const cpu::QuantizedKernel& kernel = cpu::quantized_kernel(active_isa());
  cpu::quantized_linear(kernel, y, x, w, bias, num_tokens, y_stride, scratch, pool);
}

}  // namespace llmctl::kernels
