// Which requests are in the batch, and which of their tokens go into the next pass.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "reshard/model_config.h"
#include "runtime/batch_loop.h"
#include "runtime/paged_cache.h"
#include "runtime/pass.h"
#include "runtime/rope.h"
#include "runtime/sequence.h"

namespace llmctl::runtime {

/// Continuous batching: a request joins as soon as there is room for the pages that it may come to
/// need, first come first served, and leaves when it is done. Every rank runs its own scheduler and
/// all decide alike, because they are told the same. Not thread-safe.
class Scheduler {
 public:
  /// `requests`, `config`, `cache` and `options` must outlive the scheduler. The cache has room for
  /// any one of the requests. Requests for no tokens are passed over. `stages` of a pipeline work
  /// on so many passes at a time. With `watches_text` groups get their TextEnds.
  Scheduler(std::span<const GenerateRequest> requests, const ModelConfig& config, PagedCache& cache,
            const BatchOptions& options, int stages, bool watches_text);
  ~Scheduler();

  /// No request waits or runs.
  bool done() const { return next_request_ == requests_.size() && groups_.empty(); }

  /// Fills the empty `pass` with tokens of groups that do not wait for logits, as many as go in:
  /// first those that continue, then prompts. With several stages the groups are spread over the
  /// passes. May stay empty while others are under way.
  void fill(Pass& pass);

  /// The group's asks of a pass have been answered and its members updated: it goes on, or leaves
  /// the batch (then the group is gone and its result returned).
  std::optional<GenerateResult> answered(Group& group);

  /// Makes the members that continue the first one, after the prompt has been computed.
  void fork(Group& group);

  int64_t prompt_tokens() const { return prompt_tokens_; }
  int64_t reused_tokens() const { return reused_tokens_; }

 private:
  void admit();
  int64_t max_asks() const;
  bool fill_prompt(Pass& pass, Group& group);
  bool reuse_page(Group& group, bool& is_pending);
  void take_token(Pass& pass, Group& group, Sequence& s);
  void slide(Group& group, Sequence& s);

  std::span<const GenerateRequest> requests_;
  const ModelConfig& config_;
  PagedCache& cache_;
  PagePool& pool_;
  const BatchOptions& options_;
  int stages_;
  bool watches_text_;
  int64_t limit_;
  std::optional<Rope> rope_;

  size_t next_request_ = 0;
  std::vector<std::unique_ptr<Group>> groups_;  // in the batch
  std::vector<Group*> ready_;                   // want their next token, longest waiting first
  std::vector<Group*> prompts_;                 // whose prompt is to be computed, oldest first
  int64_t width_ = 0, reserved_pages_ = 0;      // of all groups
  int64_t pass_number_ = 0;
  std::vector<int32_t> page_ids_;  // scratch
  int64_t prompt_tokens_ = 0, reused_tokens_ = 0;
};

}  // namespace llmctl::runtime
