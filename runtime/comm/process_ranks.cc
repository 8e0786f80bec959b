#include "runtime/comm/process_ranks.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "formats/core/error.h"
#include "runtime/comm/communicator.h"
#include "runtime/rank_model.h"

namespace llmctl::runtime {
namespace {

/// Some ranks of a link, in order: each sends what it has straight to each other one, which for the
/// handful of ranks of a model is the shortest way.
class ProcessCommunicator final : public Communicator {
 public:
  ProcessCommunicator(ProcessLink& link, std::vector<int> members, int channel)
      : link_(link), members_(std::move(members)), channel_(channel) {
    const auto me = std::find(members_.begin(), members_.end(), link.rank());
    rank_ = static_cast<int>(me - members_.begin());
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }

  void barrier() override {
    char mine = 0;
    std::vector<char> all(members_.size());
    all_gather(all.data(), &mine, 1);
  }

  void all_gather(void* recv, const void* send, size_t bytes_per_rank) override {
    sent_.clear();
    received_.clear();
    auto* out = static_cast<std::byte*>(recv);
    for (int r = 0; r < size(); ++r) {
      if (r == rank_) continue;
      sent_.push_back({member(r), channel_, send, bytes_per_rank});
      received_.push_back(
          {member(r), channel_, out + static_cast<size_t>(r) * bytes_per_rank, bytes_per_rank});
    }
    std::byte* mine = out + static_cast<size_t>(rank_) * bytes_per_rank;
    if (mine != send && bytes_per_rank > 0) std::memmove(mine, send, bytes_per_rank);
    link_.exchange(sent_, received_);
  }

  void all_reduce_sum(float* data, size_t count) override {
    gathered_.resize(count * members_.size());
    all_gather(gathered_.data(), data, count * sizeof(float));
    std::copy_n(gathered_.begin(), count, data);
    for (size_t r = 1; r < members_.size(); ++r) {
      for (size_t i = 0; i < count; ++i) data[i] += gathered_[r * count + i];
    }
  }

  void broadcast(void* data, size_t bytes, int root) override {
    check_rank(root);
    sent_.clear();
    received_.clear();
    for (int r = 0; r < size() && rank_ == root; ++r) {
      if (r != root) sent_.push_back({member(r), channel_, data, bytes});
    }
    if (rank_ != root) received_.push_back({member(root), channel_, data, bytes});
    link_.exchange(sent_, received_);
  }

  void send(const void* data, size_t bytes, int to) override {
    check_rank(to);
    const ProcessLink::Sent message{member(to), channel_, data, bytes};
    link_.exchange({&message, 1}, {});
  }

  void recv(void* data, size_t bytes, int from) override {
    check_rank(from);
    const ProcessLink::Received message{member(from), channel_, data, bytes};
    link_.exchange({}, {&message, 1});
  }

  /// The link tells the others, when the process leaves by its error.
  void abort(const std::string&) override {}

 private:
  int member(int rank) const { return members_[static_cast<size_t>(rank)]; }
  void check_rank(int rank) const {
    if (rank >= 0 && rank < size()) return;
    throw Error(ErrorCode::kInternal,
                "no rank " + std::to_string(rank) + " in a group of " + std::to_string(size()));
  }

  ProcessLink& link_;
  std::vector<int> members_;  // ranks of the link
  int channel_, rank_ = 0;
  std::vector<ProcessLink::Sent> sent_;
  std::vector<ProcessLink::Received> received_;
  std::vector<float> gathered_;
};

class ProcessRanks final : public RankGroup {
 public:
  ProcessRanks(ProcessLink& link, int tp, int pp)
      : world_size_(tp * pp),
        local_{link.rank()},
        world_(link, ranks(0, tp * pp), 0),
        tp_(link, ranks(link.rank() / tp * tp, tp), 1) {
    if (link.size() != tp * pp) {
      throw Error(ErrorCode::kInternal, std::to_string(link.size()) + " processes for " +
                                            std::to_string(tp * pp) + " ranks");
    }
  }

  int world_size() const override { return world_size_; }
  const std::vector<int>& local_ranks() const override { return local_; }
  void run(const std::function<void(int, const RankComm&)>& body) override {
    body(local_.front(), RankComm{&world_, &tp_});
  }

 private:
  static std::vector<int> ranks(int first, int count) {
    std::vector<int> result;
    for (int i = 0; i < count; ++i) result.push_back(first + i);
    return result;
  }

  int world_size_;
  std::vector<int> local_;
  ProcessCommunicator world_, tp_;
};

}  // namespace

std::unique_ptr<RankGroup> make_process_ranks(ProcessLink& link, int tp, int pp) {
  return std::make_unique<ProcessRanks>(link, tp, pp);
}

}  // namespace llmctl::runtime
