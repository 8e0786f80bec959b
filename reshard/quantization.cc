#include "reshard/quantization.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "formats/core/error.h"
#include "formats/export.h"
#include "formats/json.h"
#include "kernels/quantized.h"
#include "reshard/model.h"
#include "reshard/panel_file.h"
#include "reshard/plan.h"

namespace llmctl::reshard {

using kernels::Quantization;

namespace {

constexpr std::array<std::string_view, 7> kQuantized = {
    "layers.{l}.qkv",     "layers.{l}.qk", "layers.{l}.v",   "layers.{l}.o",
    "layers.{l}.gate_up", "layers.{l}.up", "layers.{l}.down"};

/// Columns of the matrices that are quantised, and what they are called.
std::vector<std::pair<std::string, int64_t>> input_sizes(const ModelConfig& config) {
  return {{"hidden_size", config.hidden_size},
          {"num_attention_heads x head_dim", config.num_attention_heads * config.head_dim},
          {"intermediate_size", config.intermediate_size}};
}

bool fits(const ModelConfig& config, const Quantization& q) {
  const auto sizes = input_sizes(config);
  return std::all_of(sizes.begin(), sizes.end(),
                     [&](const auto& size) { return kernels::can_quantize(q, size.second); });
}

void check_groups(const ModelConfig& config, const Quantization& q) {
  if (fits(config, q)) return;
  std::string working;
  for (const int64_t size : kernels::quantization_group_sizes()) {
    if (!fits(config, {q.bits, size})) continue;
    working += (working.empty() ? "" : ", ") + std::to_string(size);
  }
  const std::string flag = "--group-size " + std::to_string(q.group_size);
  const std::string hint = (working.empty() ? std::string() : "use " + working + ", or ") +
                           (working.empty() ? "use " : "") +
                           "--group-size 0 for one scale to each row";
  const auto known = kernels::quantization_group_sizes();
  if (std::find(known.begin(), known.end(), q.group_size) == known.end()) {
    throw_usage(flag, "no such groups: they are of 32, 64, 128 or 256 columns", hint);
  }
  for (const auto& [name, size] : input_sizes(config)) {
    if (kernels::can_quantize(q, size)) continue;
    throw_usage(flag, name + " is " + std::to_string(size) + ", which such groups do not divide",
                hint);
  }
}

/// Calls body(target row, source row) for the rows that an op copies whole; false when it copies
/// parts of rows.
template <class Body>
bool for_each_row(const CopyOp& op, int64_t columns, int64_t source_columns, const Body& body) {
  if (columns != source_columns || op.dst_offset % columns != 0 || op.src_offset % columns != 0) {
    return false;
  }
  std::vector<std::array<int64_t, 3>> axes;  // extent, rows apart in source and target
  int64_t covered = 1;
  for (int a = 0; a < op.box.num_axes; ++a) {
    const int64_t extent = op.box.extents[a];
    const int64_t from = op.box.src_strides[a], to = op.box.dst_strides[a];
    if (extent == 1) continue;
    if (from % columns == 0 && to % columns == 0) {
      axes.push_back({extent, from / columns, to / columns});
    } else if (from == to && from < columns) {
      covered *= extent;
    } else {
      return false;
    }
  }
  if (covered != columns) return false;
  const auto visit = [&](const auto& self, size_t axis, int64_t source, int64_t target) -> void {
    if (axis == axes.size()) return body(target, source);
    for (int64_t i = 0; i < axes[axis][0]; ++i) {
      self(self, axis + 1, source + i * axes[axis][1], target + i * axes[axis][2]);
    }
  };
  visit(visit, 0, op.src_offset / columns, op.dst_offset / columns);
  return true;
}

}  // namespace

bool is_quantizable(std::string_view rule_name) {
  return std::find(kQuantized.begin(), kQuantized.end(), rule_name) != kQuantized.end();
}

int64_t quantized_columns(std::string_view key, const ModelConfig& config) {
  const std::string_view name = key.substr(key.rfind('.') + 1);
  for (const std::string_view input : {"q", "k", "v", "gate", "up"}) {
    if (name == input) return config.hidden_size;
  }
  if (name == "o") return config.num_attention_heads * config.head_dim;
  return name == "down" ? config.intermediate_size : 0;
}

std::string quantization_text(const Quantization& q) {
  const std::string bits = "INT" + std::to_string(q.bits);
  return q.group_size == 0 ? bits + " by rows"
                           : bits + " in groups of " + std::to_string(q.group_size);
}

std::optional<Quantization> quantization_of(const formats::Checkpoint& checkpoint) {
  if (checkpoint.format != "export") return std::nullopt;
  const std::string where = checkpoint.path.string() + ": " + formats::kExportConfig;
  const auto json = formats::parse_json(checkpoint.texts.at(formats::kExportConfig), where);
  const auto it = json.find("quantization");
  if (it == json.end()) return std::nullopt;
  const auto refuse = [&](const std::string& what) {
    throw_invalid(where, what, "use the llmctl that wrote it, or export the model again");
  };
  const auto text = [&](const char* key) {
    const auto found = it->is_object() ? it->find(key) : it->end();
    return found == it->end() ? std::string("nothing") : found->dump();
  };
  if (!it->is_object()) refuse("'quantization' is no object");
  if (text("method") != "\"symmetric\"") {
    refuse("unknown quantization method " + printable(text("method"), 60));
  }
  const auto bits = it->find("bits"), group = it->find("group_size");
  if (bits == it->end() || group == it->end()) refuse("'quantization' says no bits or group_size");
  Quantization q;
  q.bits = static_cast<int>(formats::get_size(*bits, where, "bits") & 0xFFFF);
  q.group_size = formats::get_size(*group, where, "group_size");
  if (!kernels::can_quantize(q, q.group_size)) {
    refuse("quantization to " + quantization_text(q) + " is unknown");
  }
  const std::string scales =
      "\"" + std::string(dtype_name(kernels::quantized_scale_dtype(q))) + "\"";
  if (text("scale_dtype") != scales) {
    refuse("scales of " + printable(text("scale_dtype"), 60) + ", " + scales + " expected");
  }
  return q;
}

Quantization choose_quantization(const Model& model, const std::optional<Quantization>& asked) {
  const std::optional<Quantization> stored = quantization_of(model.checkpoint());
  const Quantization chosen = asked.value_or(stored.value_or(Quantization{}));
  if (!chosen) return chosen;
  if (stored && *stored != chosen) {
    throw_usage("--quant int" + std::to_string(chosen.bits),
                "the matrices of " + model.checkpoint().path.string() + " are " +
                    quantization_text(*stored) + " already, and " + quantization_text(chosen) +
                    " of that would err twice",
                "quantise the checkpoint that it was made from, or leave --quant out");
  }
  check_groups(model.config(), chosen);
  return chosen;
}

std::vector<float> carried_scales(const Model& model, const PlannedTensor& tensor) {
  const int64_t columns = tensor.target.shape[1];
  const int64_t blocks = kernels::quantized_blocks(tensor.quantization, columns);
  const formats::Checkpoint& checkpoint = model.checkpoint();
  std::vector<float> scales;
  std::map<int, std::vector<float>> of_source;
  for (const CopyOp& op : tensor.ops) {
    const auto& stored = checkpoint.tensors[static_cast<size_t>(op.source)];
    if (checkpoint.files.empty()) return {};
    const auto* file = dynamic_cast<const PanelFile*>(
        checkpoint.files[static_cast<size_t>(stored.file)].decoder.get());
    const PackedMatrix* matrix = file != nullptr ? file->find(stored.offset_bytes) : nullptr;
    if (matrix == nullptr || matrix->quantization != tensor.quantization) return {};
    std::vector<float>& known = of_source[op.source];
    if (known.empty()) known = file->read_scales(*matrix);
    // Rows of padding are zeros, whose scale is one.
    if (scales.empty()) {
      scales.assign(static_cast<size_t>(tensor.target.shape[0] * blocks), 1.0F);
    }
    const bool whole =
        for_each_row(op, columns, matrix->columns, [&](int64_t target, int64_t source) {
          std::copy_n(known.begin() + source * blocks, blocks, scales.begin() + target * blocks);
        });
    if (!whole) {
      throw Error(ErrorCode::kInternal, "a quantised row that is cut", tensor.target.name);
    }
  }
  return scales;
}

}  // namespace llmctl::reshard
