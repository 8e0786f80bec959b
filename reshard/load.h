// Opens any readable checkpoint as a model, and loads one rank's weights through a plan.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/core/thread_pool.h"
#include "kernels/panels.h"
#include "reshard/model_config.h"
#include "reshard/rule.h"

namespace llmctl::reshard {

class Model;  // reshard/model.h: a checkpoint whose tensors have been given their meaning

/// What one rank holds: `tp_rank` of `tensor_parallel_size`, layers [first_layer, end_layer).
struct RankSlice {
  int tensor_parallel_size = 1;
  int tp_rank = 0;
  int64_t first_layer = 0;
  int64_t end_layer = 0;
};

/// Tensors in memory, 64-byte aligned: vectors as they are, matrices as panels. Owns them;
/// immutable after load; safe to share.
class RankWeights {
 public:
  struct Tensor {
    DType dtype = DType::F32;
    std::vector<int64_t> shape;
    const void* data = nullptr;
    kernels::Quantization quantization = {};  ///< of a matrix whose panels are quantised

    bool is_matrix() const { return shape.size() == 2; }
    /// Throws kInternal when the shape has not two axes.
    kernels::PanelMatrix matrix() const;
  };

  /// By the rule's name with {l} replaced; null when the model has no such tensor.
  const Tensor* find(const std::string& name) const;
  /// Throws kInternal when absent.
  const Tensor& get(const std::string& name) const;
  uint64_t total_bytes() const { return total_bytes_; }
  /// Of these, bytes that lie in mapped files.
  uint64_t mapped_bytes() const { return mapped_bytes_; }

 private:
  friend RankWeights load_rank(const Model&, std::span<const TensorRule>, const RankSlice&,
                               std::optional<DType>, ThreadPool&,
                               const std::optional<kernels::Quantization>&);
  struct Block;
  struct Maps;
  std::map<std::string, Tensor> tensors_;
  std::vector<std::shared_ptr<Block>> blocks_;
  std::shared_ptr<const Maps> maps_;
  uint64_t total_bytes_ = 0, mapped_bytes_ = 0;
};

/// Loads every row of `rules` that the model has, as it stands for the rank. Matrices (two stored
/// axes) are cast to `matrix_dtype`, or keep the checkpoint's dtype when nothing, and packed as
/// panels where they stand; vectors become F32. What the file of an export holds just so is mapped,
/// not read. The matrices that is_quantizable names are quantised on the way as `quantization` says
/// (choose_quantization); the panels of a quantised export keep their integers and scales, whatever
/// the slice. A described model (describe_model) gets its random weights. Throws what planning and
/// reading throw, and kInvalidInput when a finite value does not fit matrix_dtype or a weight
/// cannot be quantised.
RankWeights load_rank(const Model& model, std::span<const TensorRule> rules, const RankSlice& slice,
                      std::optional<DType> matrix_dtype, ThreadPool& pool,
                      const std::optional<kernels::Quantization>& quantization = {});

}  // namespace llmctl::reshard
