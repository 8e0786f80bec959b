#include "tests/gpu/cublaslt.h"

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <library_types.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "formats/core/error.h"
#include "kernels/cuda/check.h"

namespace llmctl::gpu {
namespace {

// Values of the public headers cublasLt.h and cublas_api.h (CUDA 13.0).
constexpr int kCompute32F = 68;
constexpr int kDescTransA = 3;
constexpr int kPreferenceMaxWorkspace = 1;
constexpr int kOpTranspose = 1;
constexpr size_t kWorkspaceBytes = size_t{32} << 20;

/// cublasLtMatmulHeuristicResult_t.
struct Heuristic {
  uint64_t algo[8];
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

void check(int status, const char* what) {
  if (status != 0) {
    throw Error(ErrorCode::kEnvironment, std::string(what) + ": status " + std::to_string(status),
                "cuBLASLt");
  }
}

}  // namespace

struct CublasLt::Api {
  int (*create)(void**);
  int (*destroy)(void*);
  int (*desc_create)(void**, int, int);
  int (*desc_set)(void*, int, const void*, size_t);
  int (*layout_create)(void**, int, uint64_t, uint64_t, int64_t);
  int (*preference_create)(void**);
  int (*preference_set)(void*, int, const void*, size_t);
  int (*heuristic)(void*, void*, void*, void*, void*, void*, void*, int, Heuristic*, int*);
  int (*matmul)(void*, void*, const void*, const void*, void*, const void*, void*, const void*,
                const void*, void*, void*, void*, const void*, void*, size_t, cudaStream_t);
};

/// The descriptors of one process-long plan; a short-lived tool may leave them to the end.
struct CublasLt::Plan {
  void *desc = nullptr, *a = nullptr, *b = nullptr, *d = nullptr;
  Heuristic best{};
};

std::unique_ptr<CublasLt> CublasLt::open() {
  const char* const named = std::getenv("LLMCTL_CUBLASLT");
  void* library = named != nullptr ? dlopen(named, RTLD_NOW) : nullptr;
  if (library == nullptr) library = dlopen("libcublasLt.so.13", RTLD_NOW);
  if (library == nullptr) {
    std::printf("cuBLASLt left out: %s\n", dlerror());
    return nullptr;
  }
  std::unique_ptr<CublasLt> lt(new CublasLt);
  lt->api_ = std::make_unique<Api>();
  const auto find = [&](auto& to, const char* name) {
    to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(dlsym(library, name));
    if (to == nullptr) throw Error(ErrorCode::kEnvironment, std::string("no ") + name, "cuBLASLt");
  };
  find(lt->api_->create, "cublasLtCreate");
  find(lt->api_->destroy, "cublasLtDestroy");
  find(lt->api_->desc_create, "cublasLtMatmulDescCreate");
  find(lt->api_->desc_set, "cublasLtMatmulDescSetAttribute");
  find(lt->api_->layout_create, "cublasLtMatrixLayoutCreate");
  find(lt->api_->preference_create, "cublasLtMatmulPreferenceCreate");
  find(lt->api_->preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(lt->api_->heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(lt->api_->matmul, "cublasLtMatmul");
  check(lt->api_->create(&lt->handle_), "cublasLtCreate");
  LLMCTL_CUDA_CHECK(cudaMalloc(&lt->workspace_, kWorkspaceBytes));
  return lt;
}

CublasLt::~CublasLt() {
  if (workspace_ != nullptr) cudaFree(workspace_);
  if (handle_ != nullptr) api_->destroy(handle_);
}

std::shared_ptr<CublasLt::Plan> CublasLt::plan(DType dtype, int64_t m, int64_t n, int64_t k) {
  const int type = dtype == DType::F16 ? CUDA_R_16F : CUDA_R_16BF;
  auto p = std::make_shared<Plan>();
  check(api_->desc_create(&p->desc, kCompute32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  const int transpose = kOpTranspose;
  check(api_->desc_set(p->desc, kDescTransA, &transpose, sizeof transpose), "transpose A");
  const auto ld = [](int64_t v) { return static_cast<uint64_t>(v); };
  // Column-major: D (n x m) = W^T (k x n, transposed) X (k x m).
  check(api_->layout_create(&p->a, type, ld(k), ld(n), k), "layout of w");
  check(api_->layout_create(&p->b, type, ld(k), ld(m), k), "layout of x");
  check(api_->layout_create(&p->d, type, ld(n), ld(m), n), "layout of y");
  void* preference = nullptr;
  check(api_->preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  check(api_->preference_set(preference, kPreferenceMaxWorkspace, &kWorkspaceBytes,
                             sizeof kWorkspaceBytes),
        "workspace preference");
  int found = 0;
  check(api_->heuristic(handle_, p->desc, p->a, p->b, p->d, p->d, preference, 1, &p->best, &found),
        "cublasLtMatmulAlgoGetHeuristic");
  check(found == 1 ? 0 : -1, "no algorithm found");
  return p;
}

void CublasLt::run(const Plan& p, void* d, const void* x, const void* w,
                   cudaStream_t stream) const {
  const float one = 1.0F, zero = 0.0F;
  check(api_->matmul(handle_, p.desc, &one, w, p.a, x, p.b, &zero, d, p.d, d, p.d, p.best.algo,
                     workspace_, kWorkspaceBytes, stream),
        "cublasLtMatmul");
}

}  // namespace llmctl::gpu
