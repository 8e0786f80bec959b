#include "runtime/cuda/blas.h"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>

#include "formats/core/error.h"

namespace llmctl::runtime::cuda {
namespace {

// Values of the public headers library_types.h, cublasLt.h and cublas_api.h (CUDA 13.0).
constexpr int kReal32F = 0;
constexpr int kReal16F = 2;
constexpr int kReal16BF = 14;
constexpr int kCompute32F = 68;
constexpr int kDescTransA = 3;
constexpr int kPreferenceMaxWorkspace = 1;
constexpr int kOpTranspose = 1;

int real_type(DType dtype) {
  return dtype == DType::F32 ? kReal32F : dtype == DType::F16 ? kReal16F : kReal16BF;
}

/// cublasLtMatmulHeuristicResult_t.
struct Heuristic {
  uint64_t algo[8];
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

/// The library's entry points that are used here.
struct Api {
  int (*create)(void**);
  int (*destroy)(void*);
  int (*desc_create)(void**, int, int);
  int (*desc_destroy)(void*);
  int (*desc_set)(void*, int, const void*, size_t);
  int (*layout_create)(void**, int, uint64_t, uint64_t, int64_t);
  int (*layout_destroy)(void*);
  int (*preference_create)(void**);
  int (*preference_destroy)(void*);
  int (*preference_set)(void*, int, const void*, size_t);
  int (*heuristic)(void*, void*, void*, void*, void*, void*, void*, int, Heuristic*, int*);
  int (*matmul)(void*, void*, const void*, const void*, void*, const void*, void*, const void*,
                const void*, void*, void*, void*, const void*, void*, size_t, cudaStream_t);
};

[[noreturn]] void fail(const std::string& what) {
  throw Error(ErrorCode::kEnvironment, what, "cuBLASLt",
              "set LLMCTL_CUBLASLT to a libcublasLt.so of CUDA 13, or to an empty text for none");
}

void check(int status, const char* what) {
  if (status != 0) fail(std::string(what) + " answers status " + std::to_string(status));
}

/// Null when there is none. Loaded once and kept.
const Api* find_api() {
  static const Api* const api = []() -> const Api* {
    const char* const named = std::getenv("LLMCTL_CUBLASLT");
    if (named != nullptr && *named == '\0') return nullptr;
    void* const library = dlopen(named != nullptr ? named : "libcublasLt.so.13", RTLD_NOW);
    if (library == nullptr) {
      if (named == nullptr) return nullptr;
      fail(std::string("LLMCTL_CUBLASLT cannot be loaded: ") + dlerror());
    }
    static Api found;
    const auto find = [&](auto& to, const char* name) {
      to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(dlsym(library, name));
      if (to == nullptr) fail(std::string("the library has no ") + name);
    };
    find(found.create, "cublasLtCreate");
    find(found.destroy, "cublasLtDestroy");
    find(found.desc_create, "cublasLtMatmulDescCreate");
    find(found.desc_destroy, "cublasLtMatmulDescDestroy");
    find(found.desc_set, "cublasLtMatmulDescSetAttribute");
    find(found.layout_create, "cublasLtMatrixLayoutCreate");
    find(found.layout_destroy, "cublasLtMatrixLayoutDestroy");
    find(found.preference_create, "cublasLtMatmulPreferenceCreate");
    find(found.preference_destroy, "cublasLtMatmulPreferenceDestroy");
    find(found.preference_set, "cublasLtMatmulPreferenceSetAttribute");
    find(found.heuristic, "cublasLtMatmulAlgoGetHeuristic");
    find(found.matmul, "cublasLtMatmul");
    return &found;
  }();
  return api;
}

/// Something of the library's that a function makes and another one ends.
struct Handle {
  void* p = nullptr;
  int (*destroy)(void*) = nullptr;

  Handle() = default;
  ~Handle() {
    if (p != nullptr) destroy(p);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
};

/// A shape and what the library does with it.
struct Plan {
  Handle desc, w, x, y;
  Heuristic best{};
  bool found = false;
};

}  // namespace

struct Blas::Impl {
  const Api* api = nullptr;
  Handle handle;
  DeviceMemory workspace;
  std::map<std::tuple<int64_t, int64_t, int64_t, DType, DType>, Plan> plans;

  void make(Plan& plan, DType y_dtype, DType dtype, int64_t m, int64_t n, int64_t k) const;
};

Blas::Blas() : impl_(std::make_unique<Impl>()) {}
Blas::~Blas() = default;

std::unique_ptr<Blas> Blas::open() {
  const Api* const api = find_api();
  if (api == nullptr) return nullptr;
  std::unique_ptr<Blas> blas(new Blas);
  Impl& self = *blas->impl_;
  self.api = api;
  self.handle.destroy = api->destroy;
  check(api->create(&self.handle.p), "cublasLtCreate");
  self.workspace = DeviceMemory(kWorkspaceBytes);
  return blas;
}

void Blas::Impl::make(Plan& plan, DType y_dtype, DType dtype, int64_t m, int64_t n,
                      int64_t k) const {
  plan.desc.destroy = api->desc_destroy;
  check(api->desc_create(&plan.desc.p, kCompute32F, kReal32F), "cublasLtMatmulDescCreate");
  const int transpose = kOpTranspose;
  check(api->desc_set(plan.desc.p, kDescTransA, &transpose, sizeof transpose), "transposing w");
  // Column-major: y (n x m) = w^T (k x n, transposed) x (k x m).
  const auto layout = [&](Handle& to, DType type, int64_t rows, int64_t columns) {
    to.destroy = api->layout_destroy;
    check(api->layout_create(&to.p, real_type(type), static_cast<uint64_t>(rows),
                             static_cast<uint64_t>(columns), rows),
          "cublasLtMatrixLayoutCreate");
  };
  layout(plan.w, dtype, k, n);
  layout(plan.x, dtype, k, m);
  layout(plan.y, y_dtype, n, m);
  Handle preference;
  preference.destroy = api->preference_destroy;
  check(api->preference_create(&preference.p), "cublasLtMatmulPreferenceCreate");
  check(api->preference_set(preference.p, kPreferenceMaxWorkspace, &kWorkspaceBytes,
                            sizeof kWorkspaceBytes),
        "the limit of the workspace");
  int found = 0;
  const int status = api->heuristic(handle.p, plan.desc.p, plan.w.p, plan.x.p, plan.y.p, plan.y.p,
                                    preference.p, 1, &plan.best, &found);
  plan.found = status == 0 && found == 1;
}

bool Blas::multiply(void* y, DType y_dtype, const void* x, const void* w, DType dtype, int64_t m,
                    int64_t n, int64_t k, bool accumulates, const Stream& stream) {
  Impl& self = *impl_;
  const auto [at, is_new] = self.plans.try_emplace({m, n, k, y_dtype, dtype});
  Plan& plan = at->second;
  if (is_new) self.make(plan, y_dtype, dtype, m, n, k);
  if (!plan.found) return false;
  const float one = 1.0F, beta = accumulates ? 1.0F : 0.0F;
  check(self.api->matmul(self.handle.p, plan.desc.p, &one, w, plan.w.p, x, plan.x.p, &beta, y,
                         plan.y.p, y, plan.y.p, plan.best.algo, self.workspace.data(),
                         kWorkspaceBytes, stream.get()),
        "cublasLtMatmul");
  return true;
}

}  // namespace llmctl::runtime::cuda
