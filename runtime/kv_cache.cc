#include "runtime/kv_cache.h"

#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "formats/core/checked.h"
#include "formats/core/error.h"
#include "reshard/preflight.h"

namespace llmctl::runtime {
namespace {
constexpr size_t kAlignment = 64;  // a cache line, and the widest vector register

bool is_cache_dtype(DType dtype) {
  return dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16;
}

}  // namespace

void KvCache::Free::operator()(std::byte* p) const { std::free(p); }

KvCache::KvCache(int64_t num_layers, int64_t num_kv_heads, int64_t head_dim, int64_t page_size,
                 int64_t state_width, DType dtype)
    : PagedCache(page_size),
      num_layers_(num_layers),
      num_kv_heads_(num_kv_heads),
      head_dim_(head_dim),
      dtype_(dtype) {
  const auto bytes = checked_num_elements(
      {2, num_kv_heads, page_size, head_dim, static_cast<int64_t>(dtype_bytes(dtype))});
  const auto state_bytes = checked_num_elements({state_width, int64_t{sizeof(float)}});
  int64_t whole = 0;
  if (num_layers < 0 || num_kv_heads < 1 || head_dim < 1 || page_size < 1 || !bytes ||
      !state_bytes || __builtin_add_overflow(*bytes, *state_bytes, &whole) ||
      !is_cache_dtype(dtype)) {
    throw Error(ErrorCode::kInternal, "a KV cache of impossible sizes");
  }
  state_offset_ = *bytes;
  layer_page_bytes_ = whole;
}

void KvCache::reset(int64_t num_pages) {
  if (num_pages > std::numeric_limits<int32_t>::max()) {
    throw Error(ErrorCode::kEnvironment, "the KV cache would need more than 2^31 pages", "",
                "ask for fewer or shorter sequences");
  }
  if (num_pages > capacity_pages()) {
    pool_.reset();
    pages_.reset(0);
    const auto bytes = checked_num_bytes(DType::U8, {num_layers_, num_pages, layer_page_bytes_});
    // aligned_alloc wants a multiple of the alignment.
    const auto rounded = bytes ? checked_add(*bytes, 2 * kAlignment - 1) : std::nullopt;
    void* memory =
        rounded ? std::aligned_alloc(kAlignment, *rounded / kAlignment * kAlignment) : nullptr;
    if (memory == nullptr) {
      throw Error(ErrorCode::kEnvironment,
                  "no memory for a KV cache of " +
                      (bytes ? std::to_string(*bytes >> 20) + " MiB" : "more than 2^63 bytes"),
                  "", "ask for fewer or shorter sequences");
    }
    pool_.reset(static_cast<std::byte*>(memory));
    pages_.reset(num_pages);
    return;
  }
  pages_.reset(capacity_pages());
}

uint64_t KvCache::page_bytes() const {
  return static_cast<uint64_t>(num_layers_) * static_cast<uint64_t>(layer_page_bytes_);
}

uint64_t KvCache::free_bytes() const {
  return reshard::available_memory().value_or(std::numeric_limits<uint64_t>::max() / 4);
}

void KvCache::copy_page(int32_t to, int32_t from) {
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    std::byte* first = pool_.get() + layer * capacity_pages() * layer_page_bytes_;
    std::memcpy(first + to * layer_page_bytes_, first + from * layer_page_bytes_,
                static_cast<size_t>(layer_page_bytes_));
  }
}

kernels::PagedKv KvCache::layer(int64_t layer) const {
  kernels::PagedKv kv;
  kv.pool = pool_.get() + layer * capacity_pages() * layer_page_bytes_;
  kv.dtype = dtype_;
  // Whole: 2 elements and more of every page are keys and values, and floats are two halves.
  kv.page_stride = layer_page_bytes_ / static_cast<int64_t>(dtype_bytes(dtype_));
  kv.num_kv_heads = num_kv_heads_;
  kv.head_dim = head_dim_;
  kv.page_size = page_size();
  return kv;
}

float* KvCache::state(int64_t layer, int32_t page) const {
  std::byte* at = pool_.get() + (layer * capacity_pages() + page) * layer_page_bytes_;
  return reinterpret_cast<float*>(at + state_offset_);
}

}  // namespace llmctl::runtime
