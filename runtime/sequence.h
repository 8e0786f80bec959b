// Sequences on their way through the batch, and the group that one request makes of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/page_pool.h"
#include "runtime/request.h"
#include "runtime/stop_strings.h"
#include "runtime/tokenizer/tokenizer.h"

namespace llmctl::runtime {

/// What the rank that samples has decided on, as all ranks learn it.
struct Choice {
  int32_t id = -1;           ///< -1: nothing (a beam search found fewer continuations)
  int32_t member = 0;        ///< of its group, that it continues
  float logprob = 0;         ///< of the model's own softmax; 0 unless asked for
  float score = 0;           ///< of a beam: the sum of log probabilities after the rules
  bool ends_text = false;    ///< a stop string is complete
  bool interrupted = false;  ///< the caller wants no more
};

/// One continuation of a prompt. Every rank keeps its own and all stay equal, because each choice
/// is broadcast.
struct Sequence {
  std::vector<int32_t> ids;    ///< generated
  std::vector<int32_t> pages;  ///< of the cache, owned
  int64_t cached = 0;          ///< tokens of the context that are in the cache, or on their way
  int64_t dropped = 0;         ///< oldest tokens that the context does not hold any more
  bool done = false;
  StopReason stop_reason = StopReason::kLength;
  std::vector<float> logprobs;
  std::vector<TokenLogprob> top_logprobs;
  double cumulative_logprob = 0;
  float score = 0;

  // The chain of full pages since position 0, while every page can be found again.
  bool chained = true;
  uint64_t node = PagePool::kRoot;  ///< of the last full page
  int64_t page_key = 0;             ///< Rope::length_key of the page that is being filled

  /// Takes over what a continuation of `parent` starts from. Nothing is allocated beyond what was
  /// reserved. Pages are not taken over.
  void continue_from(const Sequence& parent);
};

/// Whether a stop string is complete in the text of a sequence; kept by the rank that samples.
class TextEnd {
 public:
  TextEnd(const Tokenizer& tokenizer, std::span<const int32_t> prompt,
          const std::vector<std::string>& stops)
      : decoder_(tokenizer, prompt), stops_(stops) {}

  bool push(int32_t id) {
    text_.clear();
    stops_.push(decoder_.push(id), text_);
    return stops_.stopped();
  }

 private:
  StreamDecoder decoder_;
  StopStrings stops_;
  std::string text_;
};

/// What one request has in the batch: a sequence, or several that share the prompt's pages.
struct Group {
  size_t index = 0;  ///< of the request
  const GenerateRequest* request = nullptr;
  std::vector<Sequence> members;   ///< one until the prompt has been computed
  std::vector<Sequence> spare;     ///< of a beam search: the members of the next step
  std::vector<TextEnd> text_ends;  ///< by member; empty without stop strings, and with beams
  bool forked = false;             ///< the prompt has been computed and all members exist
  int64_t reserved_pages = 0;
  // Of a beam search.
  std::vector<GenerateResult> finished;  ///< best first, at most num_beams
  bool may_improve = true;

  int64_t prompt_size() const { return static_cast<int64_t>(request->prompt_ids.size()); }
  /// Tokens known, forgotten ones included.
  int64_t known(const Sequence& s) const {
    return prompt_size() + static_cast<int64_t>(s.ids.size());
  }
  /// Tokens of the context: those that have a position.
  int64_t context(const Sequence& s) const { return known(s) - s.dropped; }
  /// The id at a position of the context.
  int32_t id(const Sequence& s, int64_t position) const {
    const int64_t i = s.dropped + position;
    return i < prompt_size() ? request->prompt_ids[static_cast<size_t>(i)]
                             : s.ids[static_cast<size_t>(i - prompt_size())];
  }
  int64_t num_active() const {
    int64_t count = 0;
    for (const Sequence& s : members) count += s.done ? 0 : 1;
    return count;
  }
  bool done() const { return num_active() == 0; }

  /// Appends the choice to its member: the id, its log probabilities and whether it is the last.
  void accept(const Choice& choice, std::span<const TokenLogprob> top);

  /// Candidates that a step of the beam search needs: enough that num_beams go on even if all
  /// others end (transformers' beams_to_keep).
  int64_t num_candidates() const;
  /// One step of the beam search (transformers' _beam_search) from its best candidates, best first:
  /// ends what ends, and makes the others the members, whose pages they share. Members are done
  /// when the search is over.
  void advance_beams(std::span<const Choice> candidates, PagePool& pool);

  /// What the caller gets. The group is of no use afterwards.
  GenerateResult take_result();
};

/// Tokens of a sequence that can ever be in the cache at once, of a model with `limit` positions
/// (0: any number): the last one generated is never fed back.
int64_t max_cached_tokens(const GenerateRequest& request, int64_t limit);

/// Pages that a request may need at most: full pages of the prompt are shared.
int64_t max_pages(const GenerateRequest& request, int64_t limit, int64_t page_size);

}  // namespace llmctl::runtime
