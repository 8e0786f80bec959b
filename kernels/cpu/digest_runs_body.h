// The loops of digest_runs_<isa>.cc, which defines Vector and its operations first. Included in
// its unnamed namespace.
#pragma once

/// The elements that fill no vector.
template <int kBytes, typename Weight>
uint64_t sum_rest(const char* data, const Weight* weights, int64_t count) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits = 0;
    __builtin_memcpy(&bits, data + i * kBytes, kBytes);
    sum += uint64_t{bits} * weights[i];
  }
  return sum;
}

template <int kBytes>
uint64_t run(const void* data, const uint32_t* weights, int64_t count) {
  const char* p = static_cast<const char*>(data);
  // Several sums, because one would wait for its own additions.
  Vector sums[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    for (int64_t s = 0; s < 4; ++s) {
      sums[s] =
          add(sums[s], multiply_low_halves(load_elements<kBytes>(p + (i + s * kLanes) * kBytes),
                                           load_weights(weights + i + s * kLanes)));
    }
  }
  for (; i + kLanes <= count; i += kLanes) {
    sums[0] = add(sums[0], multiply_low_halves(load_elements<kBytes>(p + i * kBytes),
                                               load_weights(weights + i)));
  }
  return sum_of(add(add(sums[0], sums[1]), add(sums[2], sums[3]))) +
         sum_rest<kBytes>(p + i * kBytes, weights + i, count - i);
}

template <int kBytes>
uint64_t wide_run(const void* data, const uint64_t* weights, int64_t count) {
  const char* p = static_cast<const char*>(data);
  Vector low = zero(), high = zero();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vector elements = load_elements<kBytes>(p + i * kBytes);
    const Vector weight = load_weights(weights + i);
    low = add(low, multiply_low_halves(elements, weight));
    high = add(high, multiply_low_halves(elements, high_halves(weight)));
  }
  return sum_of(low) + (sum_of(high) << 32) +
         sum_rest<kBytes>(p + i * kBytes, weights + i, count - i);
}
