// What `llmctl run` was asked, as its flags fill it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/device.h"
#include "cli/flags.h"

namespace llmctl::cli {

/// How tokens are chosen and where a sequence ends.
struct DecodingFlags {
  int64_t max_new_tokens = -1;  ///< -1: a default, or what fits
  int64_t min_new_tokens = 0;
  double temperature = 0, top_p = 1, min_p = 0, typical_p = 1;
  int64_t top_k = 0, seed = 0;
  double repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  std::vector<std::string> bad_words, bad_word_ids, stop;
  std::string stop_ids;
  bool ignore_eos = false;
  int64_t logprobs = -1;  ///< -1: none
  int64_t num_return_sequences = 1, beams = 1;
  double length_penalty = 1, beam_diversity = 0;
  std::string early_stopping = "heuristic", context_overflow = "refuse";

  void add(CLI::App& verb);
};

struct RunOptions {
  std::string model;
  SourceFlags about_source;
  // Where prompts come from; at most one of these. With none of them the session is interactive.
  std::string prompt, prompt_file, token_ids, data_file, start_ids;
  bool has_prompt = false, has_token_ids = false;
  bool chat = false;  ///< prompts are turns of a conversation
  std::string messages, system, chat_template;
  std::string output_file;
  bool resume = false, overwrite = false;
  int64_t tp = 1, pp = 1, threads = 0;
  std::string dtype, kv_dtype, activation_dtype, rope_precision;
  DeviceFlags device;
  QuantizationFlags quantization;
  int64_t batch_size = 0;  ///< 0: a default
  uint64_t kv_memory = 0;  ///< 0: a default
  DecodingFlags decoding;
  bool json = false;
  std::string logits_file;

  /// Whether some input is text, so that a model without a tokenizer cannot do.
  bool needs_tokenizer() const {
    return has_prompt || chat || !prompt_file.empty() || !decoding.stop.empty() ||
           !decoding.bad_words.empty();
  }
};

}  // namespace llmctl::cli
