// What `llmctl run` was asked, as its flags fill it.
#pragma once

#include <cstdint>
#include <string>

#include "cli/flags.h"

namespace llmctl::cli {

struct RunOptions {
  std::string model;
  SourceFlags about_source;
  std::string prompt, token_ids;
  bool has_prompt = false, has_token_ids = false;
  int64_t tp = 1, pp = 1, threads = 0;
  int64_t max_new_tokens = -1;  ///< -1: a default, or what fits
  double temperature = 0, top_p = 1;
  int64_t top_k = 0, seed = 0;
  std::string dtype, kv_dtype, rope_precision;
  bool ignore_eos = false, json = false;
  std::string logits_file;
};

}  // namespace llmctl::cli
