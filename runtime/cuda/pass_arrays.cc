#include "runtime/cuda/pass_arrays.h"

#include <algorithm>
#include <bit>
#include <type_traits>
#include <vector>

namespace llmctl::runtime::cuda {
namespace {

struct Run {
  int64_t first_row = 0, num_tokens = 0;
};

std::vector<Run> runs_of(const Step& step) {
  std::vector<Run> runs;
  const auto num_tokens = static_cast<int64_t>(step.ids.size());
  for (int64_t i = 0; i < num_tokens; ++i) {
    const auto t = static_cast<size_t>(i);
    const bool goes_on = t > 0 && step.block_tables[t] == step.block_tables[t - 1] &&
                         step.positions[t] == step.positions[t - 1] + 1;
    if (!goes_on) runs.push_back({i, 0});
    ++runs.back().num_tokens;
  }
  return runs;
}

}  // namespace

void PassArrays::fill(const Step& step, Rope* rope, const Stream& stream) {
  const std::vector<Run> cut = runs_of(step);
  const auto tokens = step.ids.size();
  const size_t pairs = rope != nullptr ? static_cast<size_t>(rope->num_pairs()) : 0;
  num_runs = static_cast<int64_t>(cut.size());
  num_singles = 0;
  while (num_singles < num_runs && cut[static_cast<size_t>(num_singles)].num_tokens == 1) {
    ++num_singles;
  }
  max_run = 0;
  int64_t last_position = 0;
  for (int64_t r = 0; r < num_runs; ++r) {
    const Run& run = cut[static_cast<size_t>(r)];
    if (r >= num_singles) max_run = std::max(max_run, run.num_tokens);
    last_position = std::max<int64_t>(
        last_position, step.positions[static_cast<size_t>(run.first_row + run.num_tokens - 1)]);
  }
  table_stride =
      static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(last_position / page_size_ + 1)));

  const size_t words =
      3 * tokens + 2 * tokens * pairs + cut.size() * (4 + static_cast<size_t>(table_stride));
  Slot& slot = slots_[turn_++ % slots_.size()];
  slot.copied.synchronize();
  if (slot.host.bytes() < words * 4) slot.host = PinnedMemory(2 * words * 4);
  if (device_.bytes() < words * 4) {
    stream.synchronize();
    device_ = {};
    device_ = DeviceMemory(2 * words * 4);
    ++generation;
  }
  size_t used = 0;
  const auto place = [&](auto& on_device, size_t count) {
    using Pointer = std::remove_reference_t<decltype(on_device)>;
    using Value = std::remove_const_t<std::remove_pointer_t<Pointer>>;
    static_assert(sizeof(Value) == 4);
    on_device = device_.as<Value>() + used;
    Value* const on_host = slot.host.as<Value>() + used;
    used += count;
    return on_host;
  };
  std::copy(step.ids.begin(), step.ids.end(), place(ids, tokens));
  std::copy(step.positions.begin(), step.positions.end(), place(positions, tokens));
  int32_t* const run_of = place(runs, tokens);
  float* const cos_rows = place(cos, tokens * pairs);
  float* const sin_rows = place(sin, tokens * pairs);
  for (size_t t = 0; t < tokens && pairs > 0; ++t) {
    rope->fill(cos_rows + t * pairs, sin_rows + t * pairs, step.positions[t], step.lengths[t]);
  }
  int32_t* const rows = place(first_rows, cut.size());
  int32_t* const lengths = place(run_tokens, cut.size());
  int32_t* const starts = place(first_positions, cut.size());
  int32_t* const ends = place(seq_lens, cut.size());
  int32_t* const pages = place(tables, cut.size() * static_cast<size_t>(table_stride));
  for (size_t r = 0; r < cut.size(); ++r) {
    const Run& run = cut[r];
    const auto first = static_cast<size_t>(run.first_row);
    rows[r] = static_cast<int32_t>(run.first_row);
    lengths[r] = static_cast<int32_t>(run.num_tokens);
    starts[r] = step.positions[first];
    ends[r] = starts[r] + lengths[r];
    std::fill_n(run_of + first, run.num_tokens, static_cast<int32_t>(r));
    int32_t* const row = pages + r * static_cast<size_t>(table_stride);
    const int64_t count = (ends[r] - 1) / page_size_ + 1;
    std::copy_n(step.block_tables[first], count, row);
    std::fill_n(row + count, table_stride - count, 0);  // never read
  }
  copy_to_device(device_.data(), slot.host.data(), used * 4, stream);
  slot.copied.record(stream);
}

}  // namespace llmctl::runtime::cuda
