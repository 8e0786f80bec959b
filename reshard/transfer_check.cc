#include "reshard/transfer_check.h"

#include <algorithm>
#include <deque>
#include <optional>

#include "formats/core/error.h"
#include "formats/core/message.h"

namespace llmctl::reshard {

using formats::StoredTensor;

/// One canonical tensor.
struct TransferCheck::Tensor {
  std::string key;
  size_t index = 0;            // in Model::keys
  std::optional<DType> dtype;  // in the target
  bool is_comparable = true;
  Layers layers;  // of the target's copies
  std::atomic<uint64_t> read{0};
  std::deque<std::atomic<uint64_t>> written;  // by layer

  Tensor(std::string name, Shape shape) : key(std::move(name)), layers(std::move(shape)) {}
};

/// One stored tensor: the boxes for which it is the one that is read.
struct TransferCheck::Source {
  struct Part {
    Tensor* tensor;
    PlacedBox box;
  };
  DType dtype = DType::F32;
  std::vector<Part> parts;
  std::mutex mutex;                 // guards `seen`
  std::map<int64_t, int64_t> seen;  // disjoint ranges that count already, begin to end

  /// The parts of [lo, hi) that were not seen yet; they are from now on.
  std::vector<std::pair<int64_t, int64_t>> claim(int64_t lo, int64_t hi) {
    const std::lock_guard lock(mutex);
    std::vector<std::pair<int64_t, int64_t>> fresh;
    auto it = seen.upper_bound(lo);
    if (it != seen.begin() && std::prev(it)->second >= lo) --it;
    int64_t begin = lo, end = hi, at = lo;
    while (it != seen.end() && it->first <= hi) {
      if (it->first > at) fresh.push_back({at, it->first});
      at = std::max(at, it->second);
      begin = std::min(begin, it->first);
      end = std::max(end, it->second);
      it = seen.erase(it);
    }
    if (at < hi) fresh.push_back({at, hi});
    seen[begin] = end;
    return fresh;
  }
};

/// One target tensor.
struct TransferCheck::Target {
  struct Part {
    std::atomic<uint64_t>* sum;
    PlacedBox box;
  };
  std::vector<Part> parts;
};

TransferCheck::TransferCheck(const Plan& plan, kernels::Overflow overflow)
    : plan_(plan), overflow_(overflow), weights_(*plan.model), targets_(plan.tensors.size()) {
  const Model& model = *plan.model;
  std::map<std::string, Tensor*> by_key;
  for (const std::string& key : model.keys()) {
    tensors_.push_back(
        std::make_unique<Tensor>(key, canonical_shape(Model::canonical_of(key), model.sizes())));
    tensors_.back()->index = tensors_.size() - 1;
    by_key[key] = tensors_.back().get();
  }
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    const PlannedTensor& planned = plan.tensors[i];
    const bool as_read =
        planned.multiply == 1 && planned.divide == 1 && planned.plus.empty() && !planned.product;
    for (const Piece& piece : planned.pieces) {
      Tensor& tensor = *by_key.at(piece.tensor);
      if (!as_read || (tensor.dtype && *tensor.dtype != planned.target.dtype)) {
        tensor.is_comparable = false;
      }
      if (!tensor.dtype) tensor.dtype = planned.target.dtype;
      for (const Layers::Part& part : tensor.layers.add(IndexBox::of(piece))) {
        while (tensor.written.size() <= part.layer) tensor.written.emplace_back(0);
        targets_[i].parts.push_back(
            {&tensor.written[part.layer], PlacedBox(weights_, piece.tensor, piece, part.box)});
      }
    }
  }
  for (const std::unique_ptr<Tensor>& tensor : tensors_) {
    if (!tensor->is_comparable || !tensor->dtype || !tensor->layers.is_complete(0)) continue;
    Layers held(canonical_shape(Model::canonical_of(tensor->key), model.sizes()));
    for (const SourcePiece& source : model.pieces(tensor->key)) {
      std::unique_ptr<Source>& entry = sources_[source.tensor];
      if (!entry) {
        entry = std::make_unique<Source>();
        entry->dtype = model.checkpoint().tensors[static_cast<size_t>(source.tensor)].dtype;
      }
      // As in plan_piece: of several holders the first is read.
      for (const Layers::Part& part : held.add(IndexBox::of(source.piece))) {
        if (part.layer > 0) continue;
        entry->parts.push_back(
            {tensor.get(), PlacedBox(weights_, tensor->key, source.piece, part.box)});
      }
    }
  }
}

TransferCheck::~TransferCheck() = default;

void TransferCheck::on_read(int source, int64_t lo, std::span<const std::byte> bytes) {
  ReadRecord record;
  on_read(source, lo, bytes, record);
}

void TransferCheck::restore(const ReadRecord& record) {
  for (const ReadRecord::Range& range : record.ranges) {
    const auto it = sources_.find(range.source);
    if (it != sources_.end()) it->second->claim(range.begin, range.end);
  }
  for (const auto& [tensor, sum] : record.sums) tensors_.at(tensor)->read.fetch_add(sum);
}

void TransferCheck::on_read(int source, int64_t lo, std::span<const std::byte> bytes,
                            ReadRecord& record) {
  const auto it = sources_.find(source);
  if (it == sources_.end()) return;
  Source& entry = *it->second;
  const auto width = static_cast<int64_t>(dtype_bytes(entry.dtype));
  const auto count = static_cast<int64_t>(bytes.size()) / width;
  // A cast is done in steps that stay in the cache.
  constexpr int64_t kCastStep = 32 << 10;
  for (const auto& [from, to] : entry.claim(lo, lo + count)) {
    const std::byte* data = bytes.data() + (from - lo) * width;
    record.ranges.push_back({source, from, to});
    for (const Source::Part& part : entry.parts) {
      if (part.box.end() <= from || part.box.first() >= to) continue;
      const DType dtype = *part.tensor->dtype;
      uint64_t sum = 0;
      if (dtype == entry.dtype) {
        sum = part.box.digest(from, to, data, width);
      } else {
        static thread_local std::vector<std::byte> cast;
        const auto cast_width = static_cast<int64_t>(dtype_bytes(dtype));
        cast.resize(static_cast<size_t>(kCastStep * cast_width));
        const int64_t begin = std::max(from, part.box.first());
        const int64_t end = std::min(to, part.box.end());
        for (int64_t at = begin; at < end; at += kCastStep) {
          const int64_t n = std::min(kCastStep, end - at);
          kernels::convert(cast.data(), dtype, data + (at - from) * width, entry.dtype, n,
                           overflow_);
          sum += part.box.digest(at, at + n, cast.data(), cast_width);
        }
      }
      part.tensor->read.fetch_add(sum, std::memory_order_relaxed);
      record.sums.emplace_back(part.tensor->index, sum);
    }
  }
}

void TransferCheck::on_write(size_t tensor, int64_t lo, std::span<const std::byte> bytes) {
  const auto width = static_cast<int64_t>(dtype_bytes(plan_.tensors[tensor].target.dtype));
  const int64_t hi = lo + static_cast<int64_t>(bytes.size()) / width;
  for (const Target::Part& part : targets_[tensor].parts) {
    if (part.box.end() <= lo || part.box.first() >= hi) continue;
    part.sum->fetch_add(part.box.digest(lo, hi, bytes.data(), width), std::memory_order_relaxed);
  }
}

std::string TransferCheck::sums() const {
  MessageWriter sums;
  for (const std::unique_ptr<Tensor>& tensor : tensors_) {
    sums.number(tensor->read.load());
    for (const std::atomic<uint64_t>& written : tensor->written) sums.number(written.load());
  }
  return sums.bytes();
}

void TransferCheck::add_sums(std::string_view sums) {
  MessageReader reader(sums);
  for (const std::unique_ptr<Tensor>& tensor : tensors_) {
    tensor->read += reader.number();
    for (std::atomic<uint64_t>& written : tensor->written) written += reader.number();
  }
}

std::set<std::string> TransferCheck::compared() const {
  std::set<std::string> keys;
  for (const std::unique_ptr<Tensor>& tensor : tensors_) {
    if (tensor->is_comparable && tensor->dtype && tensor->layers.is_complete(0)) {
      keys.insert(tensor->key);
    }
  }
  return keys;
}

std::vector<CanonicalDigest> TransferCheck::finish() const {
  std::vector<CanonicalDigest> digests;
  for (const std::unique_ptr<Tensor>& tensor : tensors_) {
    if (!tensor->dtype || !tensor->layers.is_complete(0)) continue;
    for (size_t layer = 0; layer < tensor->layers.count() && tensor->is_comparable; ++layer) {
      if (!tensor->layers.is_complete(layer)) continue;
      const uint64_t written = tensor->written[layer].load();
      if (written == tensor->read.load()) continue;
      throw Error(ErrorCode::kInternal,
                  "what was to be written is not what was read: digest " + digest_hex(written) +
                      ", expected " + digest_hex(tensor->read.load()),
                  "tensor '" + tensor->key + "'", "nothing was published; check the memory");
    }
    digests.push_back({tensor->key, *tensor->dtype, tensor->written[0].load()});
  }
  return digests;
}

}  // namespace llmctl::reshard
