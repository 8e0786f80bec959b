#include "reshard/load.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>

#include "formats/core/error.h"
#include "reshard/executor.h"
#include "reshard/model.h"

namespace llmctl::reshard {

/// One allocation for all tensors of a rank: huge pages where the system has them.
struct RankWeights::Block {
  explicit Block(size_t bytes) : size(std::max<size_t>(bytes, 1)) {
    void* address =
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) {
      throw_errno("weights", "cannot take " + std::to_string(bytes) + " bytes of memory",
                  "use a smaller --dtype, or a machine with more memory");
    }
    ::madvise(address, size, MADV_HUGEPAGE);
    data = static_cast<std::byte*>(address);
  }
  ~Block() { ::munmap(data, size); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  size_t size;
  std::byte* data = nullptr;
};

namespace {

/// Fills the tensors where they will stay.
class MemorySink : public TensorSink {
 public:
  explicit MemorySink(std::vector<std::byte*> targets) : targets_(std::move(targets)) {}
  std::byte* memory(size_t tensor) override { return targets_[tensor]; }
  void write(size_t, uint64_t, std::span<const std::byte>) override {}

 private:
  std::vector<std::byte*> targets_;
};

constexpr size_t kAlignment = kernels::kPanelAlignment;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// What a tensor takes once it is packed: more than it is read as where a panel is incomplete.
size_t bytes_in_memory(const PlannedTensor& tensor) {
  const Shape& shape = tensor.target.shape;
  if (shape.size() < 2) return aligned(tensor.num_bytes());
  const auto bytes = shape.size() == 2
                         ? kernels::matrix_panel_bytes(tensor.target.dtype, shape[0], shape[1])
                         : std::nullopt;
  if (!bytes) throw Error(ErrorCode::kInternal, "not a matrix", tensor.target.name);
  return aligned(*bytes);
}

}  // namespace

kernels::PanelMatrix RankWeights::Tensor::matrix() const {
  if (!is_matrix()) throw Error(ErrorCode::kInternal, "a weight that is no matrix");
  return {data, dtype, shape[0], shape[1]};
}

const RankWeights::Tensor* RankWeights::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

const RankWeights::Tensor& RankWeights::get(const std::string& name) const {
  const Tensor* tensor = find(name);
  if (tensor == nullptr) throw Error(ErrorCode::kInternal, "no weight '" + name + "' was loaded");
  return *tensor;
}

RankWeights load_rank(const Model& model, std::span<const TensorRule> rules, const RankSlice& slice,
                      std::optional<DType> matrix_dtype, ThreadPool& pool) {
  PlanOptions options;
  options.tp = slice.tensor_parallel_size;
  options.only_rank = slice.tp_rank;
  options.first_layer = slice.first_layer;
  options.end_layer = slice.end_layer;
  options.must_use_all = false;
  options.target_name = "runtime";
  options.dtype = [&](const Shape& shape, DType source) {
    if (shape.size() < 2) return DType::F32;
    const DType dtype = matrix_dtype.value_or(source);
    return kernels::has_panels(dtype) ? dtype : DType::F32;
  };
  const Plan plan = make_plan(model, rules, options);
  RankWeights weights;
  size_t total = 0;
  for (const PlannedTensor& tensor : plan.tensors) total += bytes_in_memory(tensor);
  auto block = std::make_shared<RankWeights::Block>(total);
  std::vector<std::byte*> targets;
  size_t offset = 0;
  for (const PlannedTensor& tensor : plan.tensors) {
    std::byte* data = block->data + offset;
    weights.tensors_[tensor.target.name] = {tensor.target.dtype, tensor.target.shape, data};
    targets.push_back(data);
    offset += bytes_in_memory(tensor);
  }
  MemorySink sink(targets);
  ExecuteOptions execute_options;
  execute_options.jobs = pool.num_threads();
  // A run on infinite weights would print nonsense, not an error.
  execute_options.overflow_is_error = true;
  execute(plan, sink, execute_options);
  for (size_t i = 0; i < targets.size(); ++i) {
    const formats::TargetTensor& target = plan.tensors[i].target;
    if (target.shape.size() != 2) continue;
    kernels::pack_panels_in_place(targets[i], target.dtype, target.shape[0], target.shape[1], pool);
  }
  weights.blocks_.push_back(std::move(block));
  weights.total_bytes_ = total;
  return weights;
}

}  // namespace llmctl::reshard
