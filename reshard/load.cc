#include "reshard/load.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <new>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "reshard/executor.h"
#include "reshard/model.h"
#include "reshard/panel_collector.h"
#include "reshard/panel_file.h"
#include "reshard/panel_quantizer.h"
#include "reshard/quantization.h"
#include "reshard/rank_layout.h"
#include "reshard/synth.h"

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

/// What memory holds of a planned matrix.
PackedMatrix packed_matrix(const PlannedTensor& tensor) {
  const Shape& shape = tensor.target.shape;
  return {tensor.target.dtype, shape[0], shape[1], tensor.quantization};
}

/// Fills the tensors where they will stay; those that are quantised arrive in pieces.
class MemorySink : public TensorSink {
 public:
  MemorySink(const Plan& plan, std::vector<std::byte*> targets) : targets_(std::move(targets)) {
    for (size_t i = 0; i < targets_.size(); ++i) {
      const PlannedTensor& planned = plan.tensors[i];
      quantized_.push_back(planned.quantization ? std::make_unique<Quantized>(plan, i) : nullptr);
    }
  }
  std::byte* memory(size_t tensor) override {
    return quantized_[tensor] ? nullptr : targets_[tensor];
  }
  void write(size_t tensor, uint64_t offset_bytes, std::span<const std::byte> bytes) override {
    if (!quantized_[tensor]) {
      std::memcpy(targets_[tensor] + offset_bytes, bytes.data(), bytes.size());
      return;
    }
    auto& [collector, quantizer] = *quantized_[tensor];
    collector.take(offset_bytes, bytes, [&](int64_t panel, std::span<const std::byte> rows, bool) {
      const auto offset = static_cast<uint64_t>(panel) * collector.shape().panel_bytes();
      quantizer.quantize(targets_[tensor] + offset, panel, rows);
    });
  }

 private:
  struct Quantized {
    Quantized(const Plan& plan, size_t tensor)
        : collector(packed_matrix(plan.tensors[tensor])), quantizer(plan, tensor) {}
    PanelCollector collector;
    PanelQuantizer quantizer;
  };
  std::vector<std::byte*> targets_;
  std::vector<std::unique_ptr<Quantized>> quantized_;
};

constexpr size_t kAlignment = kernels::kPanelAlignment;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// What a tensor takes once it is packed: more than it is read as where a panel is incomplete.
size_t bytes_in_memory(const PlannedTensor& tensor) {
  const Shape& shape = tensor.target.shape;
  if (shape.size() < 2) return aligned(tensor.num_bytes());
  if (tensor.quantization) return aligned(packed_matrix(tensor).num_bytes());
  const auto bytes = shape.size() == 2
                         ? kernels::matrix_panel_bytes(tensor.target.dtype, shape[0], shape[1])
                         : std::nullopt;
  if (!bytes) throw Error(ErrorCode::kInternal, "not a matrix", tensor.target.name);
  return aligned(*bytes);
}

}  // namespace

kernels::PanelMatrix RankWeights::Tensor::matrix() const {
  if (!is_matrix()) throw Error(ErrorCode::kInternal, "a weight that is no matrix");
  return {data, dtype, shape[0], shape[1], quantization};
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

namespace {

/// Whether the stored tensor is the planned one element for element, so that no copy is needed.
bool is_identity(const PlannedTensor& planned, const formats::StoredTensor& stored) {
  if (stored.dtype != planned.target.dtype || stored.shape != planned.target.shape ||
      !stored.is_contiguous() || planned.product || !planned.plus.empty() ||
      planned.multiply != 1 || planned.divide != 1) {
    return false;
  }
  return std::all_of(planned.ops.begin(), planned.ops.end(), [&](const CopyOp& op) {
    if (op.source != planned.ops.front().source || op.src_offset != op.dst_offset) return false;
    for (int a = 0; a < op.box.num_axes; ++a) {
      if (op.box.extents[a] > 1 && op.box.src_strides[a] != op.box.dst_strides[a]) return false;
    }
    return true;
  });
}

/// Where a file holds a planned tensor just as memory would: panels or a vector, aligned.
struct InFile {
  int file = 0;
  uint64_t offset_bytes = 0, size_bytes = 0;
};
std::optional<InFile> find_in_file(const Model& model, const PlannedTensor& planned) {
  if (planned.ops.empty()) return std::nullopt;
  const formats::Checkpoint& checkpoint = model.checkpoint();
  const auto& stored = checkpoint.tensors[static_cast<size_t>(planned.ops.front().source)];
  if (!is_identity(planned, stored)) return std::nullopt;
  const auto* panels = dynamic_cast<const PanelFile*>(
      checkpoint.files[static_cast<size_t>(stored.file)].decoder.get());
  // Only files that were laid out for it: others may be written to while the model runs.
  if (panels == nullptr || !panels->is_mappable()) return std::nullopt;
  const bool is_matrix = planned.target.shape.size() == 2;
  const PackedMatrix* matrix = panels->find(stored.offset_bytes);
  if (is_matrix != (matrix != nullptr)) return std::nullopt;
  if (is_matrix && matrix->quantization != planned.quantization) return std::nullopt;
  const uint64_t offset = is_matrix ? matrix->file_offset : stored.offset_bytes;
  if (offset % kAlignment != 0) return std::nullopt;
  return InFile{stored.file, offset, is_matrix ? matrix->num_bytes() : planned.num_bytes()};
}

/// The page tables of what is mapped, made at once and by all threads: page by page while the first
/// token is computed takes longer.
void populate(const std::byte* data, size_t size, ThreadPool& pool) {
  constexpr size_t kStep = size_t{16} << 20;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(data) + size;
  pool.parallel_for(static_cast<int64_t>((end - begin + kStep - 1) / kStep), [&](int64_t i) {
    const uintptr_t from = begin + static_cast<uintptr_t>(i) * kStep;
    // A hint: an older kernel refuses it, and the pages come when they are touched.
    ::madvise(reinterpret_cast<void*>(from), std::min<size_t>(kStep, end - from),
              MADV_POPULATE_READ);
  });
}

/// The seed of a model that no file holds, as describe_model was told.
uint64_t seed_of(const Model& model) {
  const std::string& origin = model.checkpoint().texts.at("origin");
  uint64_t seed = 0;
  if (!origin.starts_with("seed ") ||
      std::from_chars(origin.data() + 5, origin.data() + origin.size(), seed).ec != std::errc()) {
    throw Error(ErrorCode::kInternal, "no seed for random weights", origin);
  }
  return seed;
}

}  // namespace

/// Files mapped for as long as their tensors are in use.
struct RankWeights::Maps {
  std::map<int, MappedFile> files;
  std::map<int, std::pair<uint64_t, uint64_t>> used;  // the range of each that is

  const std::byte* take(const formats::Checkpoint& checkpoint, const InFile& place) {
    const auto& described = checkpoint.files[static_cast<size_t>(place.file)];
    const MappedFile& file = files.try_emplace(place.file, described.path).first->second;
    const uint64_t end = place.offset_bytes + place.size_bytes;
    if (file.bytes().size() != described.size_bytes) {
      throw Error(ErrorCode::kEnvironment, "the file changed while it was in use",
                  described.path.string(), "make sure that nothing else writes to it");
    }
    if (!is_inside(place.offset_bytes, place.size_bytes, file.bytes().size())) {
      throw Error(ErrorCode::kInternal, "a tensor beyond the end of its file",
                  described.path.string());
    }
    auto& [lo, hi] = used.try_emplace(place.file, place.offset_bytes, end).first->second;
    lo = std::min(lo, place.offset_bytes);
    hi = std::max(hi, end);
    return file.bytes().data() + place.offset_bytes;
  }
};

RankWeights load_rank(const Model& model, std::span<const TensorRule> rules, const RankSlice& slice,
                      std::optional<DType> matrix_dtype, ThreadPool& pool,
                      const std::optional<kernels::Quantization>& quantization) {
  const kernels::Quantization chosen = choose_quantization(model, quantization);
  PlanOptions options;
  options.tp = slice.tensor_parallel_size;
  options.only_rank = slice.tp_rank;
  options.first_layer = slice.first_layer;
  options.end_layer = slice.end_layer;
  options.must_use_all = false;
  options.target_name = "runtime";
  options.dtype = [&](const Shape& shape, DType source) {
    return rank_dtype(shape, source, matrix_dtype);
  };
  options.quantization = [&](std::string_view rule) {
    return is_quantizable(rule) ? chosen : kernels::Quantization{};
  };
  Plan plan = make_plan(model, rules, options);
  const bool is_random = model.checkpoint().format == "canonical";
  RankWeights weights;
  auto maps = std::make_shared<RankWeights::Maps>();
  std::vector<PlannedTensor> to_load;
  for (PlannedTensor& tensor : plan.tensors) {
    const auto place = is_random ? std::nullopt : find_in_file(model, tensor);
    if (!place) {
      to_load.push_back(std::move(tensor));
      continue;
    }
    weights.tensors_[tensor.target.name] = {tensor.target.dtype, tensor.target.shape,
                                            maps->take(model.checkpoint(), *place),
                                            tensor.quantization};
    weights.mapped_bytes_ += place->size_bytes;
  }
  plan.tensors = std::move(to_load);
  for (const auto& [file, range] : maps->used) {
    populate(maps->files.at(file).bytes().data() + range.first, range.second - range.first, pool);
  }
  size_t total = 0;
  for (const PlannedTensor& tensor : plan.tensors) total += bytes_in_memory(tensor);
  auto block = std::make_shared<RankWeights::Block>(total);
  std::vector<std::byte*> targets;
  size_t offset = 0;
  for (const PlannedTensor& tensor : plan.tensors) {
    std::byte* data = block->data + offset;
    weights.tensors_[tensor.target.name] = {tensor.target.dtype, tensor.target.shape, data,
                                            tensor.quantization};
    targets.push_back(data);
    offset += bytes_in_memory(tensor);
  }
  MemorySink sink(plan, targets);
  ExecuteOptions execute_options;
  execute_options.jobs = pool.num_threads();
  // A run on infinite weights would print nonsense, not an error.
  execute_options.overflow_is_error = true;
  if (is_random) {
    fill_random(plan, seed_of(model), sink, execute_options);
  } else {
    execute(plan, sink, execute_options);
  }
  for (size_t i = 0; i < targets.size(); ++i) {
    const formats::TargetTensor& target = plan.tensors[i].target;
    if (target.shape.size() != 2 || plan.tensors[i].quantization) continue;
    kernels::pack_panels_in_place(targets[i], target.dtype, target.shape[0], target.shape[1], pool);
  }
  weights.maps_ = std::move(maps);
  weights.blocks_.push_back(std::move(block));
  weights.total_bytes_ = total + weights.mapped_bytes_;
  return weights;
}

}  // namespace llmctl::reshard
