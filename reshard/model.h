// A checkpoint whose tensors have been given their meaning: the canonical model.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "reshard/canonical.h"
#include "reshard/families/family.h"
#include "reshard/layout.h"
#include "reshard/model_config.h"
#include "reshard/rule.h"

namespace llmctl::reshard {

/// A part of one canonical tensor and the stored tensor that holds it.
struct SourcePiece {
  int tensor = 0;  ///< index into Checkpoint::tensors
  Piece piece;
  Step step = Step::kNone;
};

struct DroppedTensor {
  std::string name;  ///< as stored
  std::string rule;  ///< why it is not needed
};

struct OpenOptions {
  std::filesystem::path family_file = {};  ///< empty: the built-in families only
  /// What the user says in place of a Megatron checkpoint's args: attribute to value, as text.
  std::map<std::string, std::string> settings = {};
  /// Padding rows of the vocabulary count as the model's own, so that they are carried over.
  bool keep_vocab_padding = false;
};

/// Immutable after open; safe to share. Owns its checkpoint.
class Model {
 public:
  const formats::Checkpoint& checkpoint() const { return checkpoint_; }
  const ModelConfig& config() const { return config_; }
  const Family& family() const { return *family_; }
  const AxisSizes& sizes() const { return *sizes_; }

  /// Keys of all canonical tensors that the model has, in canonical order (see canonical_key).
  const std::vector<std::string>& keys() const { return keys_; }
  bool has(const std::string& key) const { return pieces_.find(key) != pieces_.end(); }
  /// Where the tensor lies; together the pieces cover it. Overlapping pieces are replicas.
  const std::vector<SourcePiece>& pieces(const std::string& key) const;
  /// The tensor's axes' names row of the canonical table.
  static const CanonicalTensor& canonical_of(const std::string& key);

  const std::vector<DroppedTensor>& dropped() const { return dropped_; }
  /// checkpoint_version of a Megatron checkpoint: the order of rows in its fused tensors.
  double megatron_version() const { return megatron_version_; }
  /// What the user should know, one line each (the reader's notes included).
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  friend class ModelBuilder;
  formats::Checkpoint checkpoint_;
  ModelConfig config_;
  std::shared_ptr<const UserFamily> user_family_;
  const Family* family_ = nullptr;
  std::shared_ptr<const AxisSizes> sizes_;
  std::map<std::string, std::vector<SourcePiece>> pieces_;
  std::vector<std::string> keys_;
  std::vector<DroppedTensor> dropped_;
  std::vector<std::string> notes_;
  double megatron_version_ = 0;
};

/// Reads the checkpoint at `path`, finds its family and maps every stored tensor. Throws
/// kInvalidInput when a tensor is unknown, missing, of the wrong shape, or covered only in part;
/// kUsage for a path that is empty. A tied head that is stored too is compared with the
/// embedding: equal, it is dropped; different, the model is treated as untied, with a note.
Model open_model(const std::filesystem::path& path, const OpenOptions& options = {});
Model open_model(formats::Checkpoint checkpoint, const OpenOptions& options = {});

/// A model whose stored tensors are the canonical ones, whole and row-major, one each, named by
/// their keys and all of `dtype`. No file holds them: only the plan may be made, not carried out.
/// `origin` says where the values come from, for fingerprints.
Model describe_model(const Family& family, const ModelConfig& config, DType dtype,
                     const std::string& origin);

/// Elements of the canonical tensors: padding, replicas and tied copies are not counted.
uint64_t count_parameters(const Model& model);

/// Compares every region that several stored tensors hold (KV heads replicated over ranks).
/// Throws kInvalidInput naming both tensors when they differ.
void check_replicas(const Model& model);

/// The stored tensor's name and, when it has one, its rank, for messages.
std::string stored_name(const formats::StoredTensor& tensor);

/// "model.layers.{l}.x" with {l} replaced.
std::string with_layer(std::string_view pattern, int64_t layer);
bool is_layer_pattern(std::string_view pattern);

}  // namespace llmctl::reshard
