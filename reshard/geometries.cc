#include "reshard/geometries.h"

#include <algorithm>
#include <string>

#include "formats/core/error.h"
#include "reshard/canonical.h"
#include "reshard/config_fields.h"

namespace llmctl::reshard {
namespace {

constexpr auto kF32 = DType::F32;
constexpr auto kF16 = DType::F16;
constexpr auto kBF16 = DType::BF16;

// clang-format off
constexpr ModelGeometry kGeometries[] = {
    {"gpt2", "gpt2", "num_hidden_layers=12 hidden_size=768 num_attention_heads=12", kF32},
    {"gpt2-medium", "gpt2", "num_hidden_layers=24 hidden_size=1024 num_attention_heads=16", kF32},
    {"gpt2-large", "gpt2", "num_hidden_layers=36 hidden_size=1280 num_attention_heads=20", kF32},
    {"gpt2-xl", "gpt2", "num_hidden_layers=48 hidden_size=1600 num_attention_heads=25", kF32},
    {"gpt-345m", "gpt2", "num_hidden_layers=24 hidden_size=1024 num_attention_heads=16", kF16},
    {"gpt-1.3b", "gpt2", "num_hidden_layers=24 hidden_size=2048 num_attention_heads=16 "
     "max_position_embeddings=2048", kF16},
    {"gpt-6.7b", "gpt2", "num_hidden_layers=32 hidden_size=4096 num_attention_heads=32 "
     "max_position_embeddings=2048", kF16},
    {"gpt-13b", "gpt2", "num_hidden_layers=40 hidden_size=5120 num_attention_heads=40 "
     "max_position_embeddings=2048", kF16},
    {"gpt-175b", "gpt2", "num_hidden_layers=96 hidden_size=12288 num_attention_heads=96 "
     "max_position_embeddings=2048", kF16, 16},
    {"opt-125m", "opt", "num_hidden_layers=12 hidden_size=768 num_attention_heads=12 "
     "intermediate_size=3072", kF16},
    {"opt-350m", "opt", "num_hidden_layers=24 hidden_size=1024 num_attention_heads=16 "
     "intermediate_size=4096 word_embed_proj_dim=512 pre_norm=false final_norm=false", kF16},
    {"opt-1.3b", "opt", "num_hidden_layers=24 hidden_size=2048 num_attention_heads=32 "
     "intermediate_size=8192", kF16},
    {"opt-6.7b", "opt", "num_hidden_layers=32 hidden_size=4096 num_attention_heads=32 "
     "intermediate_size=16384", kF16},
    {"opt-30b", "opt", "num_hidden_layers=48 hidden_size=7168 num_attention_heads=56 "
     "intermediate_size=28672", kF16},
    {"bloom-560m", "bloom", "num_hidden_layers=24 hidden_size=1024 num_attention_heads=16", kF16},
    {"bloom-1b1", "bloom", "num_hidden_layers=24 hidden_size=1536 num_attention_heads=16", kF16},
    {"bloom-3b", "bloom", "num_hidden_layers=30 hidden_size=2560 num_attention_heads=32", kF16},
    {"bloom-7b1", "bloom", "num_hidden_layers=30 hidden_size=4096 num_attention_heads=32", kF16},
    {"bloom-176b", "bloom", "num_hidden_layers=70 hidden_size=14336 num_attention_heads=112", kBF16},
    {"gptj-6b", "gptj", "num_hidden_layers=28 hidden_size=4096 num_attention_heads=16 "
     "vocab_size=50400 max_position_embeddings=2048 rotary_dim=64", kF16},
    {"gpt-neox-20b", "gpt_neox", "num_hidden_layers=44 hidden_size=6144 num_attention_heads=64 "
     "intermediate_size=24576 vocab_size=50432 max_position_embeddings=2048 rotary_dim=24", kF16},
    {"llama-1b", "llama", "num_hidden_layers=22 hidden_size=2048 num_attention_heads=32 "
     "num_key_value_heads=4 intermediate_size=5632 norm_eps=1e-05", kBF16},
    {"llama-7b", "llama", "num_hidden_layers=32 hidden_size=4096 num_attention_heads=32 "
     "intermediate_size=11008", kF16},
    {"llama-13b", "llama", "num_hidden_layers=40 hidden_size=5120 num_attention_heads=40 "
     "intermediate_size=13824", kF16},
    {"llama-30b", "llama", "num_hidden_layers=60 hidden_size=6656 num_attention_heads=52 "
     "intermediate_size=17920", kF16},
    {"llama-65b", "llama", "num_hidden_layers=80 hidden_size=8192 num_attention_heads=64 "
     "intermediate_size=22016", kF16},
    {"llama-70b", "llama", "num_hidden_layers=80 hidden_size=8192 num_attention_heads=64 "
     "num_key_value_heads=8 intermediate_size=28672 max_position_embeddings=4096 norm_eps=1e-05",
     kF16},
    {"llama3-8b", "llama", "num_hidden_layers=32 hidden_size=4096 num_attention_heads=32 "
     "num_key_value_heads=8 intermediate_size=14336 vocab_size=128256 norm_eps=1e-05 "
     "max_position_embeddings=8192 rope_theta=500000 bos_token_id=128000", kBF16},
    {"llama3-70b", "llama", "num_hidden_layers=80 hidden_size=8192 num_attention_heads=64 "
     "num_key_value_heads=8 intermediate_size=28672 vocab_size=128256 norm_eps=1e-05 "
     "max_position_embeddings=8192 rope_theta=500000 bos_token_id=128000", kBF16},
    {"mistral-7b", "mistral", "num_hidden_layers=32 hidden_size=4096 num_attention_heads=32 "
     "num_key_value_heads=8 intermediate_size=14336 vocab_size=32000 norm_eps=1e-05 "
     "max_position_embeddings=32768", kBF16},
    {"qwen2-7b", "qwen2", "num_hidden_layers=28 hidden_size=3584 num_attention_heads=28 "
     "num_key_value_heads=4 intermediate_size=18944 vocab_size=152064 rope_theta=1000000 "
     "max_position_embeddings=131072", kBF16},
    {"yuan-2.1b", "yuan", "num_hidden_layers=24 hidden_size=2048 num_attention_heads=32 "
     "intermediate_size=8192 vocab_size=135040 max_position_embeddings=8192", kBF16},
    {"yuan-51b", "yuan", "num_hidden_layers=42 hidden_size=8192 num_attention_heads=64 "
     "intermediate_size=32768 vocab_size=135040 max_position_embeddings=4096", kBF16, 16,
     "2,2,2,2,2,3,3,3,3,3,3,3,3,3,3,2"},
    {"yuan-102b", "yuan", "num_hidden_layers=84 hidden_size=8192 num_attention_heads=64 "
     "intermediate_size=32768 vocab_size=135040 max_position_embeddings=4096", kBF16, 32,
     "2,2,2,2,2,2,2,2,2,2,3,3,3,3,3,3,3,3,3,3,3,3,3,3,3,3,3,3,3,3,2,2"},
};
// clang-format on

void set(ModelConfig& config, const std::string& setting, const std::string& where) {
  const size_t equals = setting.find('=');
  const std::string name = setting.substr(0, equals);
  const ConfigField* field = find_config_field(name);
  if (equals == std::string::npos || field == nullptr) {
    throw_usage(where, "'" + printable(setting, 80) + "' sets no field of a model",
                "give name=value, such as num_hidden_layers=4; docs/cli.md lists the names");
  }
  try {
    set_field_text(config, *field, setting.substr(equals + 1), where);
  } catch (const Error& error) {
    throw_usage(where, error.message());
  }
}

}  // namespace

std::vector<int64_t> ModelGeometry::blocks() const {
  std::vector<int64_t> numbers;
  for (size_t begin = 0; begin < pipeline_blocks.size();) {
    const size_t end = std::min(pipeline_blocks.find(',', begin), pipeline_blocks.size());
    numbers.push_back(std::stoll(std::string(pipeline_blocks.substr(begin, end - begin))));
    begin = end + 1;
  }
  return numbers;
}

std::span<const ModelGeometry> geometry_table() { return kGeometries; }

const ModelGeometry* find_geometry(std::string_view name) {
  for (const ModelGeometry& geometry : kGeometries) {
    if (geometry.name == name) return &geometry;
  }
  return nullptr;
}

ModelConfig make_config(const Family& family, const ModelGeometry* geometry,
                        const std::vector<std::string>& settings) {
  ModelConfig config;
  config.family = family.name;
  family.defaults(config);
  if (geometry != nullptr) {
    // Sizes that follow from those of the defaults follow from the geometry's instead.
    config.num_key_value_heads = config.head_dim = config.rotary_dim = 0;
    for (const std::string& field : split_words(geometry->fields)) {
      set(config, field, "geometry " + std::string(geometry->name));
    }
    if (geometry->fields.find("intermediate_size") == std::string_view::npos) {
      config.intermediate_size = 0;
    }
  }
  for (const std::string& setting : settings) set(config, setting, "--set");
  const auto fill = [](int64_t& size, int64_t value) {
    if (size == 0) size = value;
  };
  fill(config.num_key_value_heads, config.num_attention_heads);
  if (config.num_attention_heads > 0) {
    fill(config.head_dim, config.hidden_size / config.num_attention_heads);
  }
  fill(config.intermediate_size, 4 * config.hidden_size);
  if (config.position == PositionKind::kRotary) fill(config.rotary_dim, config.head_dim);
  if (config.word_embed_proj_dim == config.hidden_size) config.word_embed_proj_dim = 0;
  ModelConfig read;
  try {
    validate(config, "--set");
    // Through the family's own config.json and back, so that what follows from a field (LLaMA's
    // attention_bias stands for four biases) agrees with what every reader will make of it.
    read = read_config(family, write_config(family, config), "--set");
  } catch (const Error& error) {
    throw_usage("--set", error.message(), "choose sizes that fit each other");
  }
  for (const std::string& setting : settings) {
    const std::string name = setting.substr(0, setting.find('='));
    const ConfigField& field = *find_config_field(name);
    if (get_field_text(read, field) != get_field_text(config, field)) {
      throw_usage("--set " + printable(setting, 80),
                  "models of family " + std::string(family.name) + " cannot have this",
                  "leave it out, or choose another --family");
    }
  }
  return read;
}

}  // namespace llmctl::reshard
