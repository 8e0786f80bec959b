#include "runtime/request.h"

#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>

#include "formats/core/error.h"
#include "runtime/parallel.h"

namespace llmctl::runtime {
namespace {

/// Writes fields one after the other.
class Writer {
 public:
  template <typename T>
  void field(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto* from = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), from, from + sizeof value);
  }
  void field(const std::string& text) {
    field(static_cast<uint64_t>(text.size()));
    const auto* from = reinterpret_cast<const std::byte*>(text.data());
    bytes_.insert(bytes_.end(), from, from + text.size());
  }
  template <typename T>
  void field(const std::vector<T>& values) {
    field(static_cast<uint64_t>(values.size()));
    for (const T& value : values) field(value);
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

/// Reads them back in the same order.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}

  template <typename T>
  void field(T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (rest_.size() < sizeof value) throw Error(ErrorCode::kInternal, "requests are cut short");
    std::memcpy(&value, rest_.data(), sizeof value);
    rest_ = rest_.subspan(sizeof value);
  }
  void field(std::string& text) {
    uint64_t size = 0;
    field(size);
    if (size > rest_.size()) throw Error(ErrorCode::kInternal, "requests are cut short");
    text.assign(reinterpret_cast<const char*>(rest_.data()), size);
    rest_ = rest_.subspan(size);
  }
  template <typename T>
  void field(std::vector<T>& values) {
    uint64_t size = 0;
    field(size);
    // Every element takes at least a byte.
    if (size > rest_.size()) throw Error(ErrorCode::kInternal, "requests are cut short");
    values.resize(size);
    for (T& value : values) field(value);
  }
  bool at_end() const { return rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
};

/// The one list of fields, for both ways.
template <typename Archive, typename Request>
void visit(Archive& archive, Request& request) {
  archive.field(request.prompt_ids);
  archive.field(request.max_new_tokens);
  archive.field(request.sampling);
  archive.field(request.rules.repetition_penalty);
  archive.field(request.rules.presence_penalty);
  archive.field(request.rules.frequency_penalty);
  archive.field(request.rules.bad_words);
  archive.field(request.rules.min_new_tokens);
  archive.field(request.stop_ids);
  archive.field(request.stop_strings);
  archive.field(request.num_logprobs);
  archive.field(request.num_sequences);
  archive.field(request.beams);
  archive.field(request.overflow);
}

}  // namespace

namespace {

void check_width(const GenerateRequest& request) {
  const BeamParams& beams = request.beams;
  if (request.num_sequences < 1) throw_usage("--num-return-sequences", "must be at least 1");
  if (beams.num_beams < 1) throw_usage("--beams", "must be at least 1");
  if (request.width() > 1 && request.overflow == ContextOverflow::kSlide) {
    throw_usage("--context-overflow slide", "needs a single sequence for each prompt",
                "leave out --beams and --num-return-sequences");
  }
  if (beams.num_beams == 1) {
    if (request.num_sequences > 1 && request.sampling.temperature == 0) {
      throw_usage("--num-return-sequences " + std::to_string(request.num_sequences),
                  "at temperature 0 all sequences are the same",
                  "give a --temperature above 0, or --beams");
    }
    return;
  }
  if (request.num_sequences > beams.num_beams) {
    throw_usage("--num-return-sequences " + std::to_string(request.num_sequences),
                "a search with --beams " + std::to_string(beams.num_beams) + " has no more");
  }
  if (request.sampling.temperature != 0) {
    throw_usage("--beams", "takes the likeliest sequences and draws nothing",
                "leave out --temperature");
  }
  if (request.num_logprobs > 0) {
    throw_usage("--logprobs " + std::to_string(request.num_logprobs),
                "a beam search has those of the chosen tokens only", "use --logprobs 0");
  }
  if (!std::isfinite(beams.length_penalty)) {
    throw_usage("--length-penalty", "must be a finite number");
  }
  if (!std::isfinite(beams.diversity)) {
    throw_usage("--beam-diversity", "must be a finite number");
  }
}

}  // namespace

void check_request(const GenerateRequest& request, const ModelConfig& config) {
  if (request.prompt_ids.empty()) throw_usage("prompt", "has no tokens");
  for (const int32_t id : request.prompt_ids) {
    if (id < 0 || id >= config.vocab_size) {
      throw_usage("prompt", "token id " + std::to_string(id) + " is outside the vocabulary of " +
                                std::to_string(config.vocab_size));
    }
  }
  check_sampling(request.sampling);
  check_logits_rules(request.rules, config.vocab_size);
  check_width(request);
  for (const std::string& stop : request.stop_strings) {
    if (stop.empty()) throw_usage("--stop", "is empty");
  }
  if (request.num_logprobs > config.vocab_size) {
    throw_usage("--logprobs " + std::to_string(request.num_logprobs),
                "the vocabulary has " + std::to_string(config.vocab_size) + " tokens");
  }
  if (request.max_new_tokens < 0) throw_usage("--max-new-tokens", "must be at least 0");
  if (request.overflow == ContextOverflow::kSlide) return;
  const int64_t limit = context_limit(config);
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  if (limit > 0 && (prompt > limit || request.max_new_tokens - 1 > limit - prompt)) {
    const int64_t room = limit - prompt + 1;
    throw_usage("prompt of " + std::to_string(prompt) + " tokens",
                "with --max-new-tokens " + std::to_string(request.max_new_tokens) +
                    " it needs more than the model's " + std::to_string(limit) + " positions",
                room >= 1 ? "use --max-new-tokens " + std::to_string(room) +
                                " or less, or --context-overflow slide"
                          : "shorten the prompt, or use --context-overflow slide");
  }
}

std::vector<std::byte> encode_requests(std::span<const GenerateRequest> requests) {
  Writer writer;
  writer.field(static_cast<uint64_t>(requests.size()));
  for (const GenerateRequest& request : requests) visit(writer, request);
  return writer.take();
}

std::vector<GenerateRequest> decode_requests(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  uint64_t count = 0;
  reader.field(count);
  std::vector<GenerateRequest> requests;
  for (uint64_t i = 0; i < count; ++i) visit(reader, requests.emplace_back());
  if (!reader.at_end()) throw Error(ErrorCode::kInternal, "requests have bytes left over");
  return requests;
}

}  // namespace llmctl::runtime
