// Quantising, packing and unpacking of weights. Bound: arithmetic, a division for each weight.
#include "kernels/quantized.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "formats/core/checked.h"
#include "formats/core/error.h"
#include "kernels/convert.h"
#include "kernels/cpu/transpose.h"
#include "kernels/isa.h"

namespace llmctl::kernels {
namespace {

constexpr std::array<int64_t, 4> kGroupSizes = {32, 64, 128, 256};

int64_t padded(int64_t columns) {
  return (columns + kQuantizedColumns - 1) / kQuantizedColumns * kQuantizedColumns;
}

/// Columns of a block.
int64_t block_columns(const Quantization& q, int64_t columns) {
  return q.group_size == 0 ? padded(columns) : q.group_size;
}

/// Bytes that a lane of a panel holds: a pair of INT8, eight INT4.
constexpr int64_t lane_bytes(int bits) { return bits == 8 ? 2 : 4; }
constexpr int64_t lane_columns(int bits) { return bits == 8 ? 2 : 8; }

void check(const Quantization& q, int64_t columns) {
  if (can_quantize(q, columns)) return;
  throw Error(ErrorCode::kInternal, "no panels of INT" + std::to_string(q.bits) + " in groups of " +
                                        std::to_string(q.group_size) + " of " +
                                        std::to_string(columns) + " columns");
}

/// What a row's weights of one block have in common.
struct Range {
  float largest = 0;  ///< |w|
  bool is_finite = true;
};
Range find_range(const float* w, int64_t count) {
  uint32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(w[i]) & 0x7FFF'FFFFU;
    most = std::max(most, magnitude);
  }
  return {std::bit_cast<float>(most), most < 0x7F80'0000U};
}

/// The scale as it is stored.
float choose_scale(const Quantization& q, float largest) {
  if (largest == 0) return 1;
  const float exact = largest / static_cast<float>(quantization_bound(q));
  if (q.group_size == 0) return std::max(exact, 0x1p-149F);
  return std::max(half_to_float(float_to_half(exact)), 0x1p-24F);
}

/// q[i] = round(w[i] / scale), halves away from zero, clipped.
void round_block(int8_t* q, const float* w, int64_t count, float scale, int bound) {
  const auto most = static_cast<float>(bound);
  for (int64_t i = 0; i < count; ++i) {
    const float exact = std::clamp(w[i] / scale, -most, most);
    const float magnitude = std::fabs(exact);
    const auto whole = static_cast<int32_t>(magnitude);
    // The difference is exact, unlike a sum with one half.
    const int32_t up = magnitude - static_cast<float>(whole) >= 0.5F ? 1 : 0;
    q[i] = static_cast<int8_t>(exact < 0 ? -(whole + up) : whole + up);
  }
}

void add_errors(QuantizeResult& result, const int8_t* q, const float* w, int64_t count,
                float scale) {
  // Sums side by side, always the same ones.
  constexpr int kLanes = 8;
  std::array<double, kLanes> error{}, weight{};
  std::array<float, kLanes> most{};
  for (int64_t i = 0; i < count; i += kLanes) {
    const auto lanes = static_cast<size_t>(std::min<int64_t>(kLanes, count - i));
    for (size_t j = 0; j < lanes; ++j) {
      const auto at = static_cast<size_t>(i) + j;
      const float off = w[at] - scale * static_cast<float>(q[at]);
      error[j] += static_cast<double>(off) * static_cast<double>(off);
      weight[j] += static_cast<double>(w[at]) * static_cast<double>(w[at]);
      most[j] = std::max(most[j], std::fabs(off));
    }
  }
  for (size_t j = 0; j < kLanes; ++j) {
    result.error_squares += error[j];
    result.weight_squares += weight[j];
    result.max_error = std::max(result.max_error, most[j]);
  }
}

/// Eight INT4 of a row, column 2j + w at bit 4j of word w: a shift brings a pair of neighbours to
/// the low bits of both words.
uint32_t pack_eight(const int8_t* q) {
  uint32_t lane = 0;
  for (int i = 0; i < 8; ++i) {
    lane |= static_cast<uint32_t>(q[i] + 8) << (i / 2 * 4 + i % 2 * 16);
  }
  return lane;
}
void unpack_eight(int8_t* q, uint32_t lane) {
  for (int i = 0; i < 8; ++i) {
    q[i] = static_cast<int8_t>(static_cast<int>(lane >> (i / 2 * 4 + i % 2 * 16) & 15U) - 8);
  }
}

/// Rows of a panel as integers, and as the lanes that they make.
struct PanelRows {
  int64_t columns;  ///< of a block
  std::vector<int8_t> values;
  std::vector<char> lanes;

  PanelRows(const Quantization& q, int64_t columns_)
      : columns(block_columns(q, columns_)),
        values(static_cast<size_t>(kPanelRows * columns)),
        lanes(static_cast<size_t>(kPanelRows * columns)) {}
  int8_t* row(int64_t r) { return values.data() + r * columns; }
};

void pack_block(char* block, PanelRows& rows, int bits) {
  const int64_t width = lane_bytes(bits), count = rows.columns / lane_columns(bits);
  const char* source = reinterpret_cast<const char*>(rows.values.data());
  if (bits == 4) {
    for (int64_t i = 0; i < kPanelRows * count; ++i) {
      const uint32_t lane = pack_eight(rows.values.data() + i * 8);
      std::memcpy(rows.lanes.data() + i * width, &lane, sizeof lane);
    }
    source = rows.lanes.data();
  }
  cpu::find_transpose(active_isa(), width)(block, kPanelRows * width, source, count * width,
                                           kPanelRows, count, false);
}

void unpack_block(PanelRows& rows, const char* block, int bits) {
  const int64_t width = lane_bytes(bits), count = rows.columns / lane_columns(bits);
  char* target = bits == 8 ? reinterpret_cast<char*>(rows.values.data()) : rows.lanes.data();
  cpu::find_transpose(active_isa(), width)(target, count * width, block, kPanelRows * width, count,
                                           kPanelRows, false);
  if (bits == 8) return;
  for (int64_t i = 0; i < kPanelRows * count; ++i) {
    uint32_t lane;
    std::memcpy(&lane, rows.lanes.data() + i * width, sizeof lane);
    unpack_eight(rows.values.data() + i * 8, lane);
  }
}

void store_scale(char* scales, const Quantization& q, int64_t row, float scale) {
  if (quantized_scale_dtype(q) == DType::F32) {
    std::memcpy(scales + row * 4, &scale, 4);
  } else {
    const uint16_t half = float_to_half(scale);
    std::memcpy(scales + row * 2, &half, 2);
  }
}
float load_scale(const char* scales, const Quantization& q, int64_t row) {
  if (quantized_scale_dtype(q) == DType::F32) {
    float scale;
    std::memcpy(&scale, scales + row * 4, 4);
    return scale;
  }
  uint16_t half;
  std::memcpy(&half, scales + row * 2, 2);
  return half_to_float(half);
}

/// Calls body(panel's first row, block, first column, columns that exist, bytes of the block).
template <class Body>
void for_each_block(const Quantization& q, int64_t rows, int64_t columns, const Body& body) {
  const int64_t blocks = quantized_blocks(q, columns), width = block_columns(q, columns);
  const size_t bytes = quantized_block_bytes(q, columns);
  size_t offset = 0;
  for (int64_t row = 0; row < rows; row += kPanelRows) {
    for (int64_t b = 0; b < blocks; ++b, offset += bytes) {
      if (!body(row, b, b * width, std::min(width, columns - b * width), offset)) return;
    }
  }
}

}  // namespace

std::span<const int64_t> quantization_group_sizes() { return kGroupSizes; }

size_t quantized_block_bytes(const Quantization& q, int64_t columns) {
  return static_cast<size_t>(block_columns(q, columns)) * 2 * static_cast<size_t>(q.bits) +
         static_cast<size_t>(kPanelRows) * dtype_bytes(quantized_scale_dtype(q));
}

size_t quantized_panel_bytes(const Quantization& q, int64_t columns) {
  return static_cast<size_t>(quantized_blocks(q, columns)) * quantized_block_bytes(q, columns);
}

std::optional<uint64_t> quantized_matrix_bytes(const Quantization& q, int64_t rows,
                                               int64_t columns) {
  if (rows < 0 || columns < 0 || columns > INT64_MAX / 64) return std::nullopt;
  const int64_t panels = rows / kPanelRows + (rows % kPanelRows != 0 ? 1 : 0);
  return checked_num_bytes(DType::U8, {panels, quantized_blocks(q, columns),
                                       static_cast<int64_t>(quantized_block_bytes(q, columns))});
}

bool can_quantize(const Quantization& q, int64_t columns) {
  if (q.bits != 8 && q.bits != 4) return false;
  if (q.group_size == 0) return true;
  return std::find(kGroupSizes.begin(), kGroupSizes.end(), q.group_size) != kGroupSizes.end() &&
         columns % q.group_size == 0;
}

QuantizeResult quantize_panels(void* panels, const void* rows_data, DType dtype, int64_t rows,
                               int64_t columns, const Quantization& q, const float* scales) {
  check(q, columns);
  using Fault = QuantizeResult::Fault;
  QuantizeResult result;
  const int64_t blocks = quantized_blocks(q, columns);
  const auto integers =
      static_cast<size_t>(block_columns(q, columns)) * 2 * static_cast<size_t>(q.bits);
  PanelRows panel(q, columns);
  std::vector<float> values(static_cast<size_t>(panel.columns));
  for_each_block(
      q, rows, columns,
      [&](int64_t first_row, int64_t b, int64_t first, int64_t count, size_t offset) {
        char* block = static_cast<char*>(panels) + offset;
        std::fill(panel.values.begin(), panel.values.end(), int8_t{0});
        for (int64_t r = 0; r < kPanelRows; ++r) {
          const int64_t row = first_row + r;
          float scale = 1;
          if (row < rows) {
            const auto at = static_cast<size_t>(row * columns + first) * dtype_bytes(dtype);
            convert(values.data(), DType::F32, static_cast<const char*>(rows_data) + at, dtype,
                    count, Overflow::kInf);
            const Range range = find_range(values.data(), count);
            scale = scales != nullptr ? scales[row * blocks + b] : choose_scale(q, range.largest);
            if (!range.is_finite || !std::isfinite(scale)) {
              result.fault = range.is_finite ? Fault::kTooLarge : Fault::kNotFinite;
              result.fault_row = row;
              result.fault_column = first;
              for (int64_t i = 0; i < count && !range.is_finite; ++i) {
                if (std::isfinite(values[static_cast<size_t>(i)])) continue;
                result.fault_column = first + i;
                break;
              }
              return false;
            }
            round_block(panel.row(r), values.data(), count, scale, quantization_bound(q));
            add_errors(result, panel.row(r), values.data(), count, scale);
          }
          store_scale(block + integers, q, r, scale);
        }
        pack_block(block, panel, q.bits);
        return true;
      });
  return result;
}

void unpack_quantized(int8_t* values, float* scales, const void* panels, int64_t rows,
                      int64_t columns, const Quantization& q) {
  check(q, columns);
  const int64_t blocks = quantized_blocks(q, columns);
  const auto integers =
      static_cast<size_t>(block_columns(q, columns)) * 2 * static_cast<size_t>(q.bits);
  PanelRows panel(q, columns);
  for_each_block(q, rows, columns,
                 [&](int64_t first_row, int64_t b, int64_t first, int64_t count, size_t offset) {
                   const char* block = static_cast<const char*>(panels) + offset;
                   if (values != nullptr) unpack_block(panel, block, q.bits);
                   for (int64_t r = 0; r < std::min(kPanelRows, rows - first_row); ++r) {
                     const int64_t row = first_row + r;
                     if (values != nullptr) {
                       std::memcpy(values + row * columns + first, panel.row(r),
                                   static_cast<size_t>(count));
                     }
                     if (scales != nullptr)
                       scales[row * blocks + b] = load_scale(block + integers, q, r);
                   }
                   return true;
                 });
}

void dequantize_panels(float* rows_data, const void* panels, int64_t rows, int64_t columns,
                       const Quantization& q) {
  check(q, columns);
  const auto integers =
      static_cast<size_t>(block_columns(q, columns)) * 2 * static_cast<size_t>(q.bits);
  PanelRows panel(q, columns);
  for_each_block(q, rows, columns,
                 [&](int64_t first_row, int64_t, int64_t first, int64_t count, size_t offset) {
                   const char* block = static_cast<const char*>(panels) + offset;
                   unpack_block(panel, block, q.bits);
                   for (int64_t r = 0; r < std::min(kPanelRows, rows - first_row); ++r) {
                     const float scale = load_scale(block + integers, q, r);
                     float* to = rows_data + (first_row + r) * columns + first;
                     const int8_t* from = panel.row(r);
                     for (int64_t i = 0; i < count; ++i)
                       to[i] = scale * static_cast<float>(from[i]);
                   }
                   return true;
                 });
}

}  // namespace llmctl::kernels
