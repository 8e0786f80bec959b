#include "formats/megatron.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "formats/core/error.h"
#include "tests/support/bytes.h"
#include "tests/support/temp_dir.h"

namespace llmctl::formats {
namespace {

std::string refusal_of(const std::filesystem::path& path) {
  try {
    read_megatron(path);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kInvalidInput);
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("megatron: names of ranks are parsed by their numbers") {
  const auto numbers = [](std::string_view name) {
    const auto rank = parse_megatron_rank(name);
    return rank ? std::vector<int>{rank->tensor, rank->pipeline, rank->other} : std::vector<int>{};
  };
  CHECK(numbers("mp_rank_03") == std::vector<int>{3, -1, -1});
  CHECK(numbers("mp_rank_03_007") == std::vector<int>{3, 7, -1});
  CHECK(numbers("mp_rank_03_007_001") == std::vector<int>{3, 7, 1});
  CHECK(numbers("mp_rank_127_1000") == std::vector<int>{127, 1000, -1});
  for (const char* name : {"mp_rank_", "mp_rank_x", "mp_rank_00_", "mp_rank_00_00x", "mp_rank_-1",
                           "mp_rank_00_000_000_000", "mp_rank_99999", "mp_rank_ 1", "rank_00",
                           "mp_rank_00000000000000000000001"}) {
    CAPTURE(name);
    CHECK(numbers(name).empty());
  }
  CHECK(megatron_rank_name(3, 7, 8) == "mp_rank_03_007");
  CHECK(megatron_rank_name(3, 0, 1) == "mp_rank_03");
  CHECK(megatron_rank_name(127, 1000, 2000) == "mp_rank_127_1000");
}

TEST_CASE("megatron: every dialect spells the names that Megatron of its time wrote") {
  MegatronDialect old, recent, core, fused;
  old.encoder = "transformer";
  old.attention = "attention";
  recent.norm = "norm";
  core.core = fused.core = fused.fused_norms = true;
  struct Row {
    const char *name, *old, *recent, *core, *fused;
  };
  const Row rows[] = {
      {"language_model.encoder.layers.3.input_layernorm.bias",
       "language_model.transformer.layers.3.input_layernorm.bias",
       "language_model.encoder.layers.3.input_norm.bias", "decoder.layers.3.input_layernorm.bias",
       "decoder.layers.3.self_attention.linear_qkv.layer_norm_bias"},
      {"language_model.encoder.layers.3.post_attention_layernorm.weight",
       "language_model.transformer.layers.3.post_attention_layernorm.weight",
       "language_model.encoder.layers.3.post_attention_norm.weight",
       "decoder.layers.3.pre_mlp_layernorm.weight",
       "decoder.layers.3.mlp.linear_fc1.layer_norm_weight"},
      {"language_model.encoder.layers.3.self_attention.query_key_value.weight",
       "language_model.transformer.layers.3.attention.query_key_value.weight",
       "language_model.encoder.layers.3.self_attention.query_key_value.weight",
       "decoder.layers.3.self_attention.linear_qkv.weight",
       "decoder.layers.3.self_attention.linear_qkv.weight"},
      {"language_model.encoder.layers.3.self_attention.dense.weight",
       "language_model.transformer.layers.3.attention.dense.weight",
       "language_model.encoder.layers.3.self_attention.dense.weight",
       "decoder.layers.3.self_attention.linear_proj.weight",
       "decoder.layers.3.self_attention.linear_proj.weight"},
      {"language_model.encoder.layers.3.mlp.dense_4h_to_h.weight",
       "language_model.transformer.layers.3.mlp.dense_4h_to_h.weight",
       "language_model.encoder.layers.3.mlp.dense_4h_to_h.weight",
       "decoder.layers.3.mlp.linear_fc2.weight", "decoder.layers.3.mlp.linear_fc2.weight"},
      {"language_model.encoder.final_layernorm.weight",
       "language_model.transformer.final_layernorm.weight",
       "language_model.encoder.final_norm.weight", "decoder.final_layernorm.weight",
       "decoder.final_layernorm.weight"},
      {"language_model.embedding.word_embeddings.weight",
       "language_model.embedding.word_embeddings.weight",
       "language_model.embedding.word_embeddings.weight", "embedding.word_embeddings.weight",
       "embedding.word_embeddings.weight"},
      {"word_embeddings_for_head.weight", "word_embeddings_for_head.weight",
       "word_embeddings_for_head.weight", "output_layer.weight", "output_layer.weight"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    CHECK(MegatronDialect{}.spell(row.name) == row.name);
    CHECK(old.spell(row.name) == row.old);
    CHECK(recent.spell(row.name) == row.recent);
    CHECK(core.spell(row.name) == row.core);
    CHECK(fused.spell(row.name) == row.fused);
  }
}

TEST_CASE("megatron: a directory that is no whole checkpoint is refused with what is wrong") {
  struct Row {
    std::vector<std::string> files;
    const char* expected;
  };
  const Row rows[] = {
      {{"iter_0000001/mp_rank_00/model_optim_rng.pt", "iter_0000002/mp_rank_00/model_optim_rng.pt"},
       "iter_0000001, iter_0000002"},
      {{"release/mp_rank_00/model_optim_rng.pt", "release/mp_rank_02/model_optim_rng.pt"},
       "mp_rank_01 is missing"},
      {{"release/mp_rank_00_000/model_optim_rng.pt", "release/mp_rank_00_002/model_optim_rng.pt"},
       "mp_rank_00_001 is missing"},
      {{"release/mp_rank_00/model_optim_rng.pt", "release/mp_rank_01_000/model_optim_rng.pt"},
       "with and without a pipeline stage"},
      {{"release/mp_rank_00/model_optim_rng.pt", "release/mp_rank_0/model_optim_rng.pt"},
       "are the same rank"},
      {{"release/mp_rank_00/model_optim_rng.pt", "release/mp_rank_99999999/model_optim_rng.pt"},
       "not the name of a rank"},
      {{"release/mp_rank_00/other.pt"}, "neither model_optim_rng.pt nor model_rng.pt"},
      {{"release/mp_rank_00/optim.pt"}, "no mp_rank_* directory in it holds a model"},
      {{"release/mp_rank_00_000_001/model_optim_rng.pt"}, "mixtures of experts"},
      {{"release/mp_rank_00/model_optim_rng.pt"}, "model_optim_rng.pt"},  // no torch file
  };
  for (const Row& row : rows) {
    CAPTURE(row.expected);
    const test::TempDir dir;
    for (const std::string& file : row.files) {
      std::filesystem::create_directories((dir / file).parent_path());
      test::write_bytes(dir / file, "{}");
    }
    CHECK(detect_megatron(dir.path()));
    CHECK(refusal_of(dir.path()).find(row.expected) != std::string::npos);
  }
}

}  // namespace llmctl::formats
