// The sizes of published models by name, one row each, for making checkpoints of them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "reshard/families/family.h"
#include "reshard/model_config.h"

namespace llmctl::reshard {

/// One row of kGeometries.
struct ModelGeometry {
  std::string_view name;    ///< "llama-7b"
  std::string_view family;  ///< name of its row in the table of families
  std::string_view fields;  ///< "field=value ..." with the names of config_fields.h
  DType dtype;              ///< as published
  int64_t pp = 1;           ///< pipeline stages it was trained with, where that is known
  std::string_view pipeline_blocks = {};  ///< layers of each stage, when they are uneven

  /// `pipeline_blocks` as numbers.
  std::vector<int64_t> blocks() const;
};

std::span<const ModelGeometry> geometry_table();

/// By name; null when there is none.
const ModelGeometry* find_geometry(std::string_view name);

/// The family's defaults, then the geometry's fields (null: none), then `settings` ("field=value").
/// Sizes that follow from others (head_dim, num_key_value_heads, ...) are worked out. Throws kUsage
/// naming the setting that is no field or has no such value, or sizes that contradict each other.
ModelConfig make_config(const Family& family, const ModelGeometry* geometry,
                        const std::vector<std::string>& settings);

}  // namespace llmctl::reshard
