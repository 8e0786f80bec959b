// A model family as data: the names it answers to, its config.json keys, and its tensors in the
// layout notation. Adding one: docs/adding-a-family.md.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>

#include "reshard/model_config.h"
#include "reshard/rule.h"

namespace llmctl::reshard {

/// A config.json key and the ModelConfig field (config_fields.h) that it sets. Several keys may set
/// one field (old and new spellings): the first present wins, and the first row is what is written.
struct ConfigKey {
  std::string_view json;
  std::string_view field;
};

/// A stored tensor that is known and not needed.
struct DropRule {
  std::string_view name;  ///< as in TensorRule
  std::string_view rule;  ///< why, as the report names it
};

/// A field fixed to a value, as text (config_fields.h), whatever config.json says.
struct FieldSetting {
  std::string_view field, text;
};

/// One row of kFamilies. Everything has static lifetime, or lives in a UserFamily.
struct Family {
  std::string_view name;
  std::span<const std::string_view>
      architectures;  ///< `architectures` of config.json; first: written
  std::span<const std::string_view> model_types;  ///< `model_type`; first: written
  /// Sets what config.json does not say. Sizes that stay 0 after the keys get the usual defaults:
  /// num_key_value_heads = num_attention_heads, head_dim = hidden_size / heads,
  /// intermediate_size = 4 * hidden_size, rotary_dim = head_dim.
  void (*defaults)(ModelConfig& config);
  std::span<const ConfigKey> keys;
  /// For what a table of keys cannot say; null when there is nothing. `where` names config.json.
  void (*read_rest)(ModelConfig& config, const nlohmann::ordered_json& json,
                    const std::string& where);
  void (*write_rest)(const ModelConfig& config, nlohmann::ordered_json& json);
  /// Prefix of the base model, which files saved without the head lack.
  std::string_view prefix;
  std::span<const TensorRule> tensors;
  std::span<const DropRule> drops;
  std::span<const FieldSetting> settings = {};
};

/// All built-in families.
std::span<const Family> family_table();

/// By `architectures`, then by `model_type`; null when none answers.
const Family* find_family(const nlohmann::ordered_json& config_json);
const Family* find_family_by_name(std::string_view name);

/// config.json -> ModelConfig. Throws kInvalidInput naming `where` and the key.
ModelConfig read_config(const Family& family, const nlohmann::ordered_json& json,
                        const std::string& where);
/// ModelConfig -> a config.json that transformers loads.
nlohmann::ordered_json write_config(const Family& family, const ModelConfig& config);

/// `sliding_window` (null: none) and `layer_types`; layers from `first` on slide when the latter is
/// absent. Refuses lists that mix the two kinds other than full layers first.
void read_sliding_layers(ModelConfig& config, const nlohmann::ordered_json& json,
                         const std::string& where, int64_t first);

/// config.json values for `read_rest`; absent and null give `otherwise`. Throw kInvalidInput naming
/// `where` and the key on a value of another kind.
bool read_flag(const nlohmann::ordered_json& json, const char* key, bool otherwise,
               const std::string& where);
double read_number(const nlohmann::ordered_json& json, const char* key, double otherwise,
                   const std::string& where);
int64_t read_integer(const nlohmann::ordered_json& json, const char* key, int64_t otherwise,
                     const std::string& where);

/// Sets rotary_dim to `fraction` of a head; refuses fractions outside [0, 1].
void set_rotary_fraction(ModelConfig& config, int64_t head_dim, double fraction,
                         const std::string& where);

/// A family from a user's file (docs/adding-a-family.md). Owns what its Family points to.
class UserFamily {
 public:
  /// Throws kInvalidInput on anything malformed, including layout lines.
  static std::unique_ptr<UserFamily> parse(std::string_view text, const std::string& where);
  ~UserFamily();
  const Family& family() const;

 private:
  struct Storage;
  UserFamily();
  std::unique_ptr<Storage> storage_;
};

// The rows of the table, one file each.
extern const Family kGpt2Family, kOptFamily, kBloomFamily, kGptJFamily, kGptNeoXFamily,
    kLlamaFamily, kQwen2Family, kMistralFamily, kYuanFamily;

}  // namespace llmctl::reshard
