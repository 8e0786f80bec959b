// Rotary embedding + KV append: one warp per (token, head) over q heads, then k heads, then v
// heads. Bound: bytes of q, k, v; for one token, latency.
#include "kernels/cuda/rotary_kv.h"

#include <bit>

#include "kernels/cuda/dispatch.cuh"

namespace llmctl::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

struct Pair {
  int32_t first, second;  ///< dims of the head
  float cos, sin;
};

__device__ Pair pair_of(const RotaryKvArgs& a, int64_t token, int32_t i) {
  const int32_t half = a.rotary_dim / 2;
  if (a.pairing == RotaryPairing::kTwoBlocks) {
    const int32_t angles = half / 2, block = i / angles, j = i % angles;
    const int32_t* const rows =
        block == 0 ? (a.rotary_positions ? a.rotary_positions : a.positions) : a.block_positions;
    const int64_t at = static_cast<int64_t>(rows[token]) * angles + j;
    return {block * half + j, block * half + j + angles, a.cos[at], a.sin[at]};
  }
  const int32_t* const rows = a.rotary_positions ? a.rotary_positions : a.positions;
  const int64_t at = static_cast<int64_t>(rows[token]) * half + i;
  if (a.pairing == RotaryPairing::kInterleaved) return {2 * i, 2 * i + 1, a.cos[at], a.sin[at]};
  return {i, i + half, a.cos[at], a.sin[at]};
}

template <typename T>
__global__ void __launch_bounds__(kThreads) rotary_kv_kernel(const RotaryKvArgs a, int page_shift) {
  trigger_dependents();
  wait_for_predecessor();
  const int lane = threadIdx.x & 31;
  const int heads = a.num_heads + 2 * a.kv.num_kv_heads;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + (threadIdx.x >> 5);
  const int64_t token = item / heads;
  int head = static_cast<int>(item % heads);
  if (token >= a.num_tokens) return;
  const int32_t position = a.positions[token];
  if (position < 0) return;

  const T* from = nullptr;
  T* to = nullptr;
  bool turn = a.pairing != RotaryPairing::kNone;
  if (head < a.num_heads) {
    if (!turn) return;
    to = static_cast<T*>(a.q) + token * a.q_stride + static_cast<int64_t>(head) * a.kv.head_dim;
    from = to;
  } else {
    head -= a.num_heads;
    const bool is_v = head >= a.kv.num_kv_heads;
    if (is_v) head -= a.kv.num_kv_heads;
    turn = turn && !is_v;
    const int64_t sequence = a.sequences != nullptr ? a.sequences[token] : token;
    const int64_t page = a.tables.pages[sequence * a.tables.stride + (position >> page_shift)];
    const int64_t row = (static_cast<int64_t>(is_v) * a.kv.num_kv_heads + head) * a.kv.page_size +
                        (position & (a.kv.page_size - 1));
    from = static_cast<const T*>(is_v ? a.v : a.k) + token * a.kv_stride +
           static_cast<int64_t>(head) * a.kv.head_dim;
    to = static_cast<T*>(a.kv.pool) + page * a.kv.page_stride + row * a.kv.head_dim;
  }
  const int32_t turned = turn ? a.rotary_dim : 0;
  for (int32_t i = lane; i < turned / 2; i += 32) {
    const Pair pair = pair_of(a, token, i);
    const float x = static_cast<float>(from[pair.first]);
    const float y = static_cast<float>(from[pair.second]);
    to[pair.first] = static_cast<T>(x * pair.cos - y * pair.sin);
    to[pair.second] = static_cast<T>(y * pair.cos + x * pair.sin);
  }
  if (to == from) return;
  for (int32_t i = turned + lane; i < a.kv.head_dim; i += 32) to[i] = from[i];
}

}  // namespace

void rotary_kv(const RotaryKvArgs& args, const LaunchStream& stream) {
  const char* const op = "rotary_kv";
  const ProfileRange range(op);
  require(args.kv.page_size > 0 && std::has_single_bit(static_cast<uint32_t>(args.kv.page_size)),
          op, "page_size must be a power of two");
  require(args.rotary_dim >= 0 && args.rotary_dim <= args.kv.head_dim && args.rotary_dim % 2 == 0,
          op, "rotary_dim must be even and at most head_dim");
  require(args.pairing != RotaryPairing::kTwoBlocks ||
              (args.rotary_dim % 4 == 0 && args.block_positions != nullptr),
          op, "two rotary blocks need rotary_dim a multiple of 4 and block positions");
  if (args.num_tokens == 0) return;
  const int64_t items = args.num_tokens * (args.num_heads + 2 * args.kv.num_kv_heads);
  const auto grid = static_cast<unsigned>((items + kWarps - 1) / kWarps);
  const int page_shift = std::countr_zero(static_cast<uint32_t>(args.kv.page_size));
  dispatch_16bit(args.kv.dtype, op, [&](auto tag) {
    launch(rotary_kv_kernel<typename decltype(tag)::type>, grid, kThreads, 0, stream, args,
           page_shift);
  });
}

}  // namespace llmctl::kernels::cuda
