// What the card can do at best: the figures every other one is divided by.
#include <cooperative_groups.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.cuh"
#include "tests/gpu/cublaslt.h"
#include "tests/gpu/harness.h"

namespace llmctl::gpu {
namespace {

using kernels::cuda::launch;
using kernels::cuda::LaunchStream;

constexpr size_t kBytes = size_t{4} << 30;
constexpr uint32_t kSpinLimit = 1U << 24;

__global__ void __launch_bounds__(512) copy_kernel(uint4* to, const uint4* from, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 3 * stride < count; i += 4 * stride) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = kernels::cuda::load_streaming(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < 4; ++j) __stcs(to + i + j * stride, v[j]);
  }
  for (; i < count; i += stride) to[i] = from[i];
}

/// Blocks walk the array in lock step, kLoads x 16 bytes per thread at a time.
template <int kLoads>
__global__ void __launch_bounds__(256)
    read_kernel(uint32_t* sink, const uint4* from, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * 256 * kLoads;
  uint32_t sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * 256 * kLoads + threadIdx.x;
       i + (kLoads - 1) * 256 < count; i += stride) {
    uint4 v[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) v[j] = kernels::cuda::load_streaming(from + i + j * 256);
#pragma unroll
    for (int j = 0; j < kLoads; ++j) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 0x12345678U) *sink = sum;  // keeps the loads alive
}

[[maybe_unused]] __device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/// One thread per block keeps `stages` bulk copies of `stage_bytes` in flight and touches nothing.
__global__ void __launch_bounds__(32)
    bulk_read_kernel(const char* from, int64_t num_chunks, int stage_bytes, int stages) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char ring[];
  __shared__ __align__(8) uint64_t full[16];
  if (threadIdx.x != 0) return;
  for (int s = 0; s < stages; ++s) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&full[s])));
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  const auto issue = [&](int64_t chunk, int s) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&full[s])),
        "r"(stage_bytes)
        : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(ring + s * stage_bytes)),
        "l"(from + chunk * stage_bytes), "r"(stage_bytes), "r"(shared_address(&full[s]))
        : "memory");
  };
  int64_t ahead = blockIdx.x;
  for (int s = 0; s < stages && ahead < num_chunks; ++s, ahead += gridDim.x) issue(ahead, s);
  int s = 0, phase = 0;
  for (int64_t c = blockIdx.x; c < num_chunks; c += gridDim.x) {
    uint32_t done = 0;
    for (uint32_t spins = 0; done == 0; ++spins) {
      if (spins > kSpinLimit) __trap();  // an error beats a hang
      asm volatile(
          "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
          "selp.u32 %0, 1, 0, p; }"
          : "=r"(done)
          : "r"(shared_address(&full[s])), "r"(phase)
          : "memory");
    }
    if (ahead < num_chunks) issue(ahead, s);
    ahead += gridDim.x;
    if (++s == stages) s = 0, phase ^= 1;
  }
#endif
}

__global__ void empty_kernel(int*) {
  kernels::cuda::trigger_dependents();
  kernels::cuda::wait_for_predecessor();
}

/// `rounds` grid barriers: a release-add on a monotonic counter, then a spin on an acquire load.
__global__ void barrier_kernel(uint32_t* counter, int rounds) {
  for (int round = 1; round <= rounds; ++round) {
    __syncthreads();
    if (threadIdx.x == 0) {
      const uint32_t target = static_cast<uint32_t>(round) * gridDim.x;
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
      uint32_t seen = 0, spins = 0;
      do {
        if (++spins > kSpinLimit) __trap();
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
      } while (static_cast<int32_t>(seen - target) < 0);
    }
    __syncthreads();
  }
}

__global__ void cluster_probe_kernel() {}

double seconds_of(const std::function<void()>& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void measure_memory(Report& report, const LaunchStream& stream) {
  Buffer a(kBytes), b(kBytes);
  fill_random(a.data(), DType::F32, kBytes / 4, 1.0F, 1, stream.handle);
  const int64_t count = kBytes / 16;
  const auto gbs = [](size_t bytes, double us) { return static_cast<double>(bytes) / us * 1e-3; };

  double best_copy = 0;
  const auto copied = [&](const std::string& name, double us) {
    report.figure(name, gbs(2 * kBytes, us), "GB/s", "read + write counted");
    best_copy = std::max(best_copy, gbs(2 * kBytes, us));
  };
  copied("copy, cudaMemcpyAsync",
         eager_microseconds(
             stream.handle,
             [&] {
               LLMCTL_CUDA_CHECK(cudaMemcpyAsync(b.data(), a.data(), kBytes,
                                                 cudaMemcpyDeviceToDevice, stream.handle));
             },
             10));
  for (const int per_sm : {2, 4}) {
    copied("copy, 16-byte loads, " + std::to_string(per_sm * 512) + " threads/SM",
           eager_microseconds(
               stream.handle,
               [&] {
                 launch(copy_kernel, static_cast<unsigned>(stream.num_sms * per_sm), 512, 0, stream,
                        b.as<uint4>(), a.as<uint4>(), count);
               },
               10));
  }
  report.figure("copy ceiling", best_copy, "GB/s", "best of the above");

  double best_read = 0, best_bulk = 0;
  const auto read = [&](auto kernel, int loads, int per_sm) {
    const double us = eager_microseconds(
        stream.handle,
        [&] {
          launch(kernel, static_cast<unsigned>(stream.num_sms * per_sm), 256, 0, stream,
                 b.as<uint32_t>(), a.as<uint4>(), count);
        },
        10);
    report.figure("read, " + std::to_string(loads) + " x 16 bytes, " +
                      std::to_string(per_sm * 256) + " threads/SM",
                  gbs(kBytes, us), "GB/s");
    best_read = std::max(best_read, gbs(kBytes, us));
  };
  for (const int per_sm : {2, 4, 8}) {
    read(read_kernel<1>, 1, per_sm);
    read(read_kernel<2>, 2, per_sm);
    read(read_kernel<4>, 4, per_sm);
    read(read_kernel<8>, 8, per_sm);
  }
  for (const int stage_kib : {4, 8, 16, 32}) {
    for (const int total_kib : {32, 64, 128, 192}) {
      const int stages = std::min(16, total_kib / stage_kib);
      if (stages < 2) continue;
      const int shared = stages * stage_kib * 1024;
      kernels::cuda::allow_shared_memory(bulk_read_kernel, static_cast<size_t>(shared));
      const double us = eager_microseconds(
          stream.handle,
          [&] {
            launch(bulk_read_kernel, static_cast<unsigned>(stream.num_sms), 32,
                   static_cast<size_t>(shared), stream, a.as<char>(),
                   static_cast<int64_t>(kBytes) / (stage_kib * 1024), stage_kib * 1024, stages);
          },
          10);
      report.figure("read, bulk copies, " + std::to_string(stages) + " x " +
                        std::to_string(stage_kib) + " KiB in flight per SM",
                    gbs(kBytes, us), "GB/s");
      best_bulk = std::max(best_bulk, gbs(kBytes, us));
    }
  }
  report.figure("read ceiling, 16-byte loads", best_read, "GB/s");
  report.figure("read ceiling, bulk copies", best_bulk, "GB/s");
  report.figure("read ceiling", std::max(best_read, best_bulk), "GB/s", "best of all");
}

void measure_launches(Report& report, const LaunchStream& stream) {
  constexpr int kNodes = 1000;
  Buffer counter(256);
  LaunchStream plain = stream;
  plain.programmatic = false;
  const auto chain = [&](const LaunchStream& s, unsigned blocks, unsigned threads) {
    return [=] {
      for (int i = 0; i < kNodes; ++i) {
        launch(empty_kernel, blocks, threads, 0, s, static_cast<int*>(nullptr));
      }
    };
  };
  const auto blocks = static_cast<unsigned>(stream.num_sms);
  report.figure("kernel in a stream, empty, back to back",
                eager_microseconds(stream.handle, chain(plain, blocks, 256)) / kNodes, "us");
  report.figure("kernel in a stream, programmatic",
                eager_microseconds(stream.handle, chain(stream, blocks, 256)) / kNodes, "us");
  report.figure("graph node, empty, 1 block per SM",
                Graph(stream.handle, chain(plain, blocks, 256)).microseconds() / kNodes, "us");
  report.figure("graph node, empty, 4 blocks per SM",
                Graph(stream.handle, chain(plain, 4 * blocks, 256)).microseconds() / kNodes, "us");
  report.figure("graph node, programmatic, 1 block per SM",
                Graph(stream.handle, chain(stream, blocks, 256)).microseconds() / kNodes, "us");
  report.figure("graph node, programmatic, 4 blocks per SM",
                Graph(stream.handle, chain(stream, 4 * blocks, 256)).microseconds() / kNodes, "us");

  for (const unsigned threads : {256U, 1024U}) {
    constexpr int kRounds = 2000;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.stream = stream.handle;
    config.attrs = &attribute;
    config.numAttrs = 1;
    const double us = eager_microseconds(stream.handle, [&] {
      counter.zero(stream.handle);
      LLMCTL_CUDA_CHECK(
          cudaLaunchKernelEx(&config, barrier_kernel, counter.as<uint32_t>(), kRounds));
    });
    report.figure(
        "grid barrier, " + std::to_string(blocks) + " blocks of " + std::to_string(threads),
        us / kRounds, "us");
  }

  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = 8;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = 128;
  config.blockDim = 1024;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, cluster_probe_kernel, &config) == cudaSuccess) {
    report.figure("clusters of 8 blocks of 1024 threads at a time", clusters, "");
  } else {
    cudaGetLastError();
  }
}

void measure_gemm(Report& report, const LaunchStream& stream) {
  const auto lt = CublasLt::open();
  if (!lt) return;
  constexpr int64_t kSize = 8192;
  Buffer x(kSize * kSize * 2), w(kSize * kSize * 2), y(kSize * kSize * 2);
  fill_random(x.data(), DType::BF16, kSize * kSize, 1.0F, 2, stream.handle);
  fill_random(w.data(), DType::BF16, kSize * kSize, 1.0F, 3, stream.handle);
  for (const int64_t m : {kSize, int64_t{2048}, int64_t{128}}) {
    const auto plan = lt->plan(DType::BF16, m, kSize, kSize);
    const double us = eager_microseconds(
        stream.handle, [&] { lt->run(*plan, y.data(), x.data(), w.data(), stream.handle); }, 20);
    report.figure("bf16 product " + std::to_string(m) + " x 8192 x 8192, cuBLASLt",
                  2.0 * static_cast<double>(m) * kSize * kSize / us * 1e-6, "TFLOP/s");
  }
}

void measure_host_link(Report& report, const LaunchStream& stream) {
  constexpr size_t kSize = size_t{1} << 30;
  void* pinned = nullptr;
  const double pin =
      seconds_of([&] { LLMCTL_CUDA_CHECK(cudaHostAlloc(&pinned, kSize, cudaHostAllocDefault)); });
  report.figure("pinning, cudaHostAlloc of 1 GiB", kSize / pin * 1e-9, "GB/s");
  std::memset(pinned, 1, kSize);
  Buffer device(kSize);
  for (const size_t piece : {kSize, size_t{16} << 20, size_t{4} << 20}) {
    const double us = eager_microseconds(
        stream.handle,
        [&] {
          for (size_t at = 0; at < kSize; at += piece) {
            LLMCTL_CUDA_CHECK(cudaMemcpyAsync(device.as<char>() + at,
                                              static_cast<char*>(pinned) + at, piece,
                                              cudaMemcpyHostToDevice, stream.handle));
          }
        },
        5);
    report.figure("host to device, pinned, pieces of " + std::to_string(piece >> 20) + " MiB",
                  kSize / us * 1e-3, "GB/s");
  }
  const double back = eager_microseconds(
      stream.handle,
      [&] {
        LLMCTL_CUDA_CHECK(
            cudaMemcpyAsync(pinned, device.data(), kSize, cudaMemcpyDeviceToHost, stream.handle));
      },
      5);
  report.figure("device to host, pinned", kSize / back * 1e-3, "GB/s");

  void* plain = mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (plain != MAP_FAILED) {
    std::memset(plain, 2, kSize);
    const double us = eager_microseconds(
        stream.handle,
        [&] {
          LLMCTL_CUDA_CHECK(
              cudaMemcpyAsync(device.data(), plain, kSize, cudaMemcpyHostToDevice, stream.handle));
        },
        3);
    report.figure("host to device, pageable", kSize / us * 1e-3, "GB/s");
    for (const unsigned threads : {1U, 4U, 8U}) {
      const double s = seconds_of([&] {
        std::vector<std::thread> team;
        for (unsigned t = 0; t < threads; ++t) {
          team.emplace_back([=] {
            const size_t part = kSize / threads;
            std::memcpy(static_cast<char*>(pinned) + t * part, static_cast<char*>(plain) + t * part,
                        part);
          });
        }
        for (std::thread& t : team) t.join();
      });
      report.figure("host copy to pinned, " + std::to_string(threads) + " threads",
                    kSize / s * 1e-9, "GB/s", "bytes copied");
    }
    const double registering = seconds_of(
        [&] { LLMCTL_CUDA_CHECK(cudaHostRegister(plain, kSize, cudaHostRegisterDefault)); });
    report.figure("pinning, cudaHostRegister of 1 GiB touched", kSize / registering * 1e-9, "GB/s");
    LLMCTL_CUDA_CHECK(cudaHostUnregister(plain));
    munmap(plain, kSize);
  }
  int read_only = 0;
  LLMCTL_CUDA_CHECK(
      cudaDeviceGetAttribute(&read_only, cudaDevAttrHostRegisterReadOnlySupported, 0));
  report.figure("read-only registration of host memory supported", read_only, "");
  LLMCTL_CUDA_CHECK(cudaFreeHost(pinned));
}

}  // namespace

void measure_ceilings(Report& report, const LaunchStream& stream) {
  report.section("Device");
  cudaDeviceProp device{};
  LLMCTL_CUDA_CHECK(cudaGetDeviceProperties(&device, 0));
  int driver = 0, runtime = 0;
  LLMCTL_CUDA_CHECK(cudaDriverGetVersion(&driver));
  LLMCTL_CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  report.figure(std::string(device.name) + ", multiprocessors", device.multiProcessorCount, "");
  report.figure("memory", static_cast<double>(device.totalGlobalMem) / 1e9, "GB");
  report.figure("L2", device.l2CacheSize / 1048576.0, "MiB");
  report.figure("CUDA driver API", driver, "");
  report.figure("CUDA runtime", runtime, "");
  report.section("Ceilings: memory");
  measure_memory(report, stream);
  report.section("Ceilings: launches and barriers");
  measure_launches(report, stream);
  report.section("Ceilings: products");
  measure_gemm(report, stream);
  report.section("Ceilings: host link");
  measure_host_link(report, stream);
  report.flush();
}

}  // namespace llmctl::gpu
