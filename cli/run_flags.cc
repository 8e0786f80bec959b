// The flags of `llmctl run` that say how tokens are chosen.
#include <limits>

#include "cli/run_options.h"

namespace llmctl::cli {
namespace {

constexpr std::string_view kEarlyStopping[] = {"heuristic", "always", "never"};
constexpr std::string_view kOverflow[] = {"refuse", "slide"};

void add_texts(CLI::App& verb, const std::string& name, std::vector<std::string>& target,
               const std::string& metavar, const std::string& description) {
  verb.add_option(name, target, description)->type_name(metavar)->allow_extra_args(false);
}

}  // namespace

void DecodingFlags::add(CLI::App& verb) {
  constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  add_integer(verb, "-n,--max-new-tokens", max_new_tokens, 0, kMaxInt, "N",
              "Generate at most N tokens [128, or what fits the model's positions]");
  add_integer(verb, "--min-new-tokens", min_new_tokens, 0, kMaxInt, "N",
              "No stop id before N tokens [0]");
  add_real(verb, "--temperature", temperature, 0, 1e6, "X",
           "0 takes the likeliest token; above, tokens are drawn at this temperature [0]");
  add_integer(verb, "--top-k", top_k, 0, kMaxInt, "K",
              "Draw from the K likeliest only; 0: from all [0]");
  add_real(verb, "--top-p", top_p, 0, 1, "P",
           "Draw from the fewest tokens whose mass reaches P [1]");
  add_real(verb, "--min-p", min_p, 0, 1, "P",
           "Draw from tokens at least P times as likely as the likeliest [0]");
  add_real(verb, "--typical-p", typical_p, 0, 1, "P",
           "Draw from the most typical tokens whose mass reaches P [1]");
  add_integer(verb, "--seed", seed, 0, kMax, "N", "Seed of the draws [0]");
  add_real(verb, "--repetition-penalty", repetition_penalty, 0, 1e6, "X",
           "Divide positive logits of tokens in prompt or answer by X, multiply negative ones [1]");
  add_real(verb, "--presence-penalty", presence_penalty, -1e6, 1e6, "X",
           "Take X from the logit of every token in the answer [0]");
  add_real(verb, "--frequency-penalty", frequency_penalty, -1e6, 1e6, "X",
           "Take X times its count from the logit of every token in the answer [0]");
  add_texts(verb, "--bad-words", bad_words, "TEXT",
            "Never write this, at a word's beginning or elsewhere; may be repeated");
  add_texts(verb, "--bad-word-ids", bad_word_ids, "IDS",
            "Never write these tokens one after the other; may be repeated");
  add_texts(verb, "--stop", stop, "TEXT", "End the text before this; may be repeated");
  verb.add_option("--stop-ids", stop_ids, "End with one of these tokens, too: 1,5,9")
      ->type_name("IDS");
  verb.add_flag("--ignore-eos", ignore_eos, "Go on after the end-of-text token");
  add_integer(verb, "--logprobs", logprobs, 0, 1000, "N",
              "With --json or --data-file: log probabilities of the tokens and of the N likeliest");
  add_integer(verb, "--num-return-sequences", num_return_sequences, 1, 1 << 16, "N",
              "Draw N sequences, or give the N best of the beams [1]");
  add_integer(verb, "--beams", beams, 1, 1 << 16, "B", "Beam search with B beams; 1: none [1]");
  add_real(verb, "--length-penalty", length_penalty, -1e3, 1e3, "X",
           "Divide a beam's log probability by its length to the power of X [1]");
  add_real(verb, "--beam-diversity", beam_diversity, -1e6, 1e6, "X",
           "Add X times i to a beam's i-th best continuation while beams are chosen [0]");
  add_choice(verb, "--early-stopping", early_stopping, kEarlyStopping,
             "When a beam search ends before --max-new-tokens [heuristic]");
  add_choice(verb, "--context-overflow", context_overflow, kOverflow,
             "More tokens than the model has positions: refuse, or forget the oldest [refuse]");
}

}  // namespace llmctl::cli
