#include "runtime/kv_cache.h"

#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "formats/core/checked.h"
#include "formats/core/error.h"

namespace llmctl::runtime {
namespace {
constexpr size_t kAlignment = 64;  // a cache line, and the widest vector register
}

void KvCache::Free::operator()(float* p) const { std::free(p); }

KvCache::KvCache(int64_t num_layers, int64_t num_kv_heads, int64_t head_dim, int64_t page_size,
                 int64_t state_width)
    : num_layers_(num_layers),
      num_kv_heads_(num_kv_heads),
      head_dim_(head_dim),
      page_size_(page_size),
      pages_(page_size) {
  const auto elements = checked_num_elements({2, num_kv_heads, page_size, head_dim});
  int64_t whole = 0;
  if (num_layers < 0 || num_kv_heads < 1 || head_dim < 1 || page_size < 1 || state_width < 0 ||
      !elements || __builtin_add_overflow(*elements, state_width, &whole)) {
    throw Error(ErrorCode::kInternal, "a KV cache of impossible sizes");
  }
  state_offset_ = *elements;
  page_elements_ = whole;
}

void KvCache::reset(int64_t num_pages) {
  if (num_pages > std::numeric_limits<int32_t>::max()) {
    throw Error(ErrorCode::kEnvironment, "the KV cache would need more than 2^31 pages", "",
                "ask for fewer or shorter sequences");
  }
  if (num_pages > capacity_pages_) {
    pool_.reset();
    capacity_pages_ = 0;
    const auto elements = checked_num_elements({num_layers_, num_pages, page_elements_});
    const auto bytes = elements ? checked_num_bytes(DType::F32, {*elements}) : std::nullopt;
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
    pool_.reset(static_cast<float*>(memory));
    capacity_pages_ = num_pages;
  }
  pages_.reset(capacity_pages_);
}

uint64_t KvCache::page_bytes() const {
  return static_cast<uint64_t>(num_layers_) * static_cast<uint64_t>(page_elements_) * sizeof(float);
}

void KvCache::copy_page(int32_t to, int32_t from) {
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    float* first = pool_.get() + layer * capacity_pages_ * page_elements_;
    std::memcpy(first + to * page_elements_, first + from * page_elements_,
                static_cast<size_t>(page_elements_) * sizeof(float));
  }
}

kernels::PagedKv KvCache::layer(int64_t layer) const {
  kernels::PagedKv kv;
  kv.pool = pool_.get() + layer * capacity_pages_ * page_elements_;
  kv.page_stride = page_elements_;
  kv.num_kv_heads = num_kv_heads_;
  kv.head_dim = head_dim_;
  kv.page_size = page_size_;
  return kv;
}

float* KvCache::state(int64_t layer, int32_t page) const {
  return pool_.get() + (layer * capacity_pages_ + page) * page_elements_ + state_offset_;
}

}  // namespace llmctl::runtime
