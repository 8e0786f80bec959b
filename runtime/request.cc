#include "runtime/request.h"

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
  archive.field(request.stop_ids);
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
  if (request.max_new_tokens < 0) throw_usage("--max-new-tokens", "must be at least 0");
  const int64_t limit = context_limit(config);
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  if (limit > 0 && (prompt > limit || request.max_new_tokens - 1 > limit - prompt)) {
    const int64_t room = limit - prompt + 1;
    throw_usage("prompt of " + std::to_string(prompt) + " tokens",
                "with --max-new-tokens " + std::to_string(request.max_new_tokens) +
                    " it needs more than the model's " + std::to_string(limit) + " positions",
                room >= 1 ? "use --max-new-tokens " + std::to_string(room) + " or less"
                          : "shorten the prompt");
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
