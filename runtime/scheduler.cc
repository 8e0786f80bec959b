#include "runtime/scheduler.h"

#include <algorithm>

#include "formats/core/error.h"
#include "runtime/parallel.h"

namespace llmctl::runtime {
namespace {

/// Ids and log probabilities grow in place up to here; longer ones may move now and then.
constexpr int64_t kReservedTokens = 1 << 16;

void reserve(Sequence& s, const GenerateRequest& request, int64_t pages) {
  const auto tokens = static_cast<size_t>(std::min(request.max_new_tokens, kReservedTokens));
  s.ids.reserve(tokens);
  // All at once: a pass holds pointers to the block table while more pages are added.
  s.pages.reserve(static_cast<size_t>(pages));
  if (request.num_logprobs < 0 && request.beams.num_beams == 1) return;
  s.logprobs.reserve(tokens);
  s.top_logprobs.reserve(tokens * static_cast<size_t>(std::max<int64_t>(request.num_logprobs, 0)));
}

}  // namespace

Scheduler::Scheduler(std::span<const GenerateRequest> requests, const ModelConfig& config,
                     PagedCache& cache, const BatchOptions& options, int stages, bool watches_text)
    : requests_(requests),
      config_(config),
      cache_(cache),
      pool_(cache.pages()),
      options_(options),
      stages_(stages),
      watches_text_(watches_text),
      limit_(context_limit(config)),
      page_ids_(static_cast<size_t>(cache.page_size())) {
  if (config.position == PositionKind::kRotary) rope_.emplace(config);
}

Scheduler::~Scheduler() = default;

void Scheduler::admit() {
  for (; next_request_ < requests_.size(); ++next_request_) {
    const GenerateRequest& request = requests_[next_request_];
    if (request.max_new_tokens == 0) continue;
    const int64_t pages = max_pages(request, limit_, cache_.page_size());
    // One that is wider than the batch runs alone.
    const bool fits_batch = options_.batch_size == 0 || groups_.empty() ||
                            width_ + request.width() <= options_.batch_size;
    if (!fits_batch || pages > pool_.num_pages() - reserved_pages_) return;
    auto group = std::make_unique<Group>();
    group->index = next_request_;
    group->request = &request;
    group->reserved_pages = pages;
    const int64_t own_pages = cache_.pages_for(max_cached_tokens(request, limit_));
    group->members.resize(1);
    reserve(group->members[0], request, own_pages);
    if (request.beams.num_beams > 1) {
      group->spare.resize(static_cast<size_t>(request.beams.num_beams));
      for (Sequence& s : group->spare) reserve(s, request, own_pages);
    }
    if (watches_text_ && request.beams.num_beams == 1 && !request.stop_strings.empty()) {
      if (options_.tokenizer == nullptr) {
        throw Error(ErrorCode::kInternal, "stop strings without a tokenizer");
      }
      for (int64_t i = 0; i < request.num_sequences; ++i) {
        group->text_ends.emplace_back(*options_.tokenizer, request.prompt_ids,
                                      request.stop_strings);
      }
    }
    slide(*group, group->members[0]);
    width_ += request.width();
    reserved_pages_ += pages;
    prompt_tokens_ += group->prompt_size();
    prompts_.push_back(group.get());
    groups_.push_back(std::move(group));
  }
}

/// Forgets the oldest tokens when the context has more than the model has positions.
void Scheduler::slide(Group& group, Sequence& s) {
  if (group.request->overflow != ContextOverflow::kSlide || limit_ == 0) return;
  if (group.context(s) <= limit_) return;
  s.dropped = group.known(s) - (limit_ + 1) / 2;
  pool_.give_back(s.pages);
  s.pages.clear();
  s.cached = 0;
  s.chained = true;
  s.node = PagePool::kRoot;
}

/// Asks that one pass may hold: an even share for each pass that is under way.
int64_t Scheduler::max_asks() const { return (width_ + stages_ - 1) / stages_; }

void Scheduler::fill(Pass& pass) {
  ++pass_number_;
  admit();
  const int64_t most = max_asks();
  const auto asked = [&] { return static_cast<int64_t>(pass.asks.size()); };

  size_t kept = 0;
  for (size_t i = 0; i < ready_.size(); ++i) {
    Group& group = *ready_[i];
    const int64_t tokens = group.num_active();
    const bool fits =
        pass.size() + tokens <= options_.chunk_tokens && (asked() == 0 || asked() + tokens <= most);
    if (!fits) {
      ready_[kept++] = &group;
      continue;
    }
    for (Sequence& s : group.members) {
      if (!s.done) slide(group, s);
    }
    if (group.members[0].cached == 0) {
      prompts_.push_back(&group);  // slid: computed again like a prompt
      continue;
    }
    for (size_t m = 0; m < group.members.size(); ++m) {
      Sequence& s = group.members[m];
      if (s.done) continue;
      take_token(pass, group, s);
      pass.ask({&group, static_cast<int32_t>(m)});
    }
  }
  ready_.resize(kept);

  kept = 0;
  bool open = true;
  for (size_t i = 0; i < prompts_.size(); ++i) {
    Group& group = *prompts_[i];
    open = open && pass.size() < options_.chunk_tokens;
    if (!open || !fill_prompt(pass, group)) prompts_[kept++] = &group;
    // What follows may begin as this one does, and must not get ahead of it.
    open = open && kept == 0;
  }
  prompts_.resize(kept);
}

/// Adds tokens of the prompt, until all are in (then true), the pass is full, or a page that an
/// equal prompt computes in this very pass has to be waited for.
bool Scheduler::fill_prompt(Pass& pass, Group& group) {
  Sequence& s = group.members[0];
  const int64_t size = group.context(s);
  while (pass.size() < options_.chunk_tokens) {
    const bool at_page = s.cached % cache_.page_size() == 0;
    bool is_pending = false;
    if (at_page && reuse_page(group, is_pending)) continue;
    if (is_pending) return false;
    const bool last = s.cached + 1 == size;
    if (last && stages_ > 1 && !pass.asks.empty() &&
        static_cast<int64_t>(pass.asks.size()) >= max_asks()) {
      return false;
    }
    take_token(pass, group, s);
    if (!last) continue;
    pass.ask({&group, 0});
    return true;
  }
  return false;
}

/// Takes a full page that somebody has computed. The last token of a prompt is always computed,
/// because its logits are wanted.
bool Scheduler::reuse_page(Group& group, bool& is_pending) {
  Sequence& s = group.members[0];
  const int64_t size = group.context(s);
  if (!options_.reuse_prefixes || !s.chained || s.cached + cache_.page_size() >= size) return false;
  for (int64_t i = 0; i < cache_.page_size(); ++i) {
    page_ids_[static_cast<size_t>(i)] = group.id(s, s.cached + i);
  }
  const int64_t key = rope_ ? rope_->length_key(size) : 0;
  const PagePool::Prefix found = pool_.find(s.node, page_ids_, key);
  if (found.page < 0) return false;
  if (found.pass == pass_number_) {
    is_pending = true;
    return false;
  }
  pool_.share(found.page);
  s.pages.push_back(found.page);
  s.node = found.node;
  s.cached += cache_.page_size();
  reused_tokens_ += cache_.page_size();
  return true;
}

void Scheduler::take_token(Pass& pass, Group& group, Sequence& s) {
  const int64_t position = s.cached++;
  const int64_t length = group.context(s);
  const int64_t page_size = cache_.page_size();
  const int64_t key = rope_ ? rope_->length_key(length) : 0;
  if (position % page_size == 0) {
    s.pages.push_back(pool_.take());
    s.page_key = key;
  } else if (pool_.is_shared(s.pages.back())) {
    // Several sequences go on from the middle of this page; the last of them keeps it.
    const int32_t shared = s.pages.back();
    const int32_t own = pool_.take();
    pass.page_copies.emplace_back(own, shared);
    pool_.give_back({&shared, 1});
    s.pages.back() = own;
  }
  if (key != s.page_key) s.chained = false;
  pass.add(group.id(s, position), position, length, s.pages.data());
  if ((position + 1) % page_size != 0 || !s.chained || !options_.reuse_prefixes) return;
  const int64_t first = position + 1 - page_size;
  for (int64_t i = 0; i < page_size; ++i) {
    page_ids_[static_cast<size_t>(i)] = group.id(s, first + i);
  }
  s.node = pool_.remember(s.pages.back(), s.node, page_ids_, key, pass_number_);
}

void Scheduler::fork(Group& group) {
  const GenerateRequest& request = *group.request;
  group.forked = true;
  if (request.width() == 1) return;
  const int64_t own_pages = cache_.pages_for(max_cached_tokens(request, limit_));
  group.members.resize(static_cast<size_t>(request.width()));
  for (size_t m = 1; m < group.members.size(); ++m) {
    Sequence& s = group.members[m];
    reserve(s, request, own_pages);
    // A beam search fills its members from its first candidates.
    if (request.beams.num_beams > 1) continue;
    s.continue_from(group.members[0]);
    s.pages = group.members[0].pages;
    for (const int32_t page : s.pages) pool_.share(page);
  }
}

std::optional<GenerateResult> Scheduler::answered(Group& group) {
  for (Sequence& s : group.members) {
    if (!s.done || s.pages.empty()) continue;
    pool_.give_back(s.pages);
    s.pages.clear();
  }
  if (!group.done()) {
    ready_.push_back(&group);
    return std::nullopt;
  }
  width_ -= group.request->width();
  reserved_pages_ -= group.reserved_pages;
  GenerateResult result = group.take_result();
  std::erase_if(groups_, [&](const auto& other) { return other.get() == &group; });
  return result;
}

}  // namespace llmctl::runtime
