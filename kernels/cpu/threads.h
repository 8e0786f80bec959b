// Inside the kernels only: cutting cheap loops into pieces worth a thread's attention.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

#include "formats/core/thread_pool.h"

namespace llmctl::kernels::cpu {

/// Elements of element-wise work below which handing it to another thread costs more than doing it.
constexpr int64_t kMinElementsPerTask = 16384;

/// Calls body(row) for every row in [0, num_rows); `row_elements` says how much work one is.
template <typename Body>
void for_each_row(ThreadPool& pool, int64_t num_rows, int64_t row_elements, const Body& body) {
  const int64_t rows_per_task =
      std::max<int64_t>(1, kMinElementsPerTask / std::max<int64_t>(1, row_elements));
  const auto task = [&](int64_t i) {
    const int64_t end = std::min(num_rows, (i + 1) * rows_per_task);
    for (int64_t row = i * rows_per_task; row < end; ++row) body(row);
  };
  // By reference: the pool's std::function then needs no memory.
  pool.parallel_for((num_rows + rows_per_task - 1) / rows_per_task, std::ref(task),
                    num_rows * row_elements * static_cast<int64_t>(sizeof(float)));
}

}  // namespace llmctl::kernels::cpu
