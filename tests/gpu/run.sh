#!/usr/bin/env bash
# Builds the device suite with nvcc and g++ alone and runs it: ceilings, checks against the CPU
# reference, kernel and decode-chain times, then the checks again under compute-sanitizer. Each step
# has its own time limit and prints as it goes, so that a cut-off run still tells something.
#
#   tests/gpu/run.sh [steps]     steps: build check bench sanitize (default: all, in this order)
#
# OUT           where results go (default build/gpu/out): check.json, bench.json, Markdown beside them
# CUDA_ARCH     the one architecture to build for (default: that of the first GPU, else 90)
# LLMCTL_GPU_SUITE   a suite built before; skips the build
set -uo pipefail
cd "$(dirname "$0")/../.."
build=build/gpu
out=${OUT:-$build/out}
suite=${LLMCTL_GPU_SUITE:-$build/llmctl_gpu_suite}
mkdir -p "$build/obj" "$out"
status=0

build_suite() {
  command -v nvcc >/dev/null || { echo "run.sh: nvcc is not on the PATH" >&2; return 1; }
  local arch=${CUDA_ARCH:-}
  [ -n "$arch" ] || arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
    head -1 | tr -d '. ')
  arch=${arch:-90}
  echo "building for sm_$arch with $(nvcc --version | tail -1)"
  local sources
  sources="$(ls kernels/cuda/*.cu kernels/cuda/*.cc tests/gpu/*.cu kernels/reference/*.cc)
    formats/core/error.cc formats/core/dtype.cc formats/core/thread_pool.cc"
  printf '%s\n' $sources | xargs -P "$(nproc)" -I{} sh -c '
    object='"$build"'/obj/$(echo {} | tr / _).o
    nvcc -std=c++20 -O3 -I. -gencode arch=compute_'"$arch"',code=sm_'"$arch"' \
      --expt-relaxed-constexpr -lineinfo -c {} -o "$object" || { echo "failed: {}"; exit 255; }' ||
    return 1
  nvcc -gencode "arch=compute_$arch,code=sm_$arch" "$build"/obj/*.o -o "$suite" -ldl -lpthread
}

# PyTorch's wheels carry cuBLASLt where no toolkit library is installed.
find_cublaslt() {
  [ -n "${LLMCTL_CUBLASLT:-}" ] && return
  ldconfig -p 2>/dev/null | grep -q 'libcublasLt.so.13' && return
  local found
  found=$(python3 - 2>/dev/null <<'PY'
import glob, site, sys
for root in sys.path + site.getsitepackages():
    for path in glob.glob(root + "/nvidia/*/lib/libcublasLt.so.13"):
        print(path)
        sys.exit()
PY
  )
  [ -n "$found" ] && export LLMCTL_CUBLASLT=$found LD_LIBRARY_PATH=$(dirname "$found"):${LD_LIBRARY_PATH:-}
}

step() {
  local name=$1 limit=$2
  shift 2
  local begin=$SECONDS
  echo "=== $name: $*"
  timeout "$limit" "$@"
  local rc=$?
  echo "=== $name: exit $rc after $((SECONDS - begin)) s"
  [ $rc -eq 0 ] || status=1
}

wanted=${*:-build check bench sanitize}
for word in $wanted; do
  case $word in
    build)
      [ -n "${LLMCTL_GPU_SUITE:-}" ] || build_suite || exit 1
      echo "built after $SECONDS s"
      nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader
      ;;
    check) find_cublaslt; step check 120 "$suite" --ceilings --check --json "$out/check.json" ;;
    bench) find_cublaslt; step bench 150 "$suite" --ceilings --bench --chain --json "$out/bench.json" ;;
    sanitize)
      if command -v compute-sanitizer >/dev/null; then
        timeout 60 compute-sanitizer "$suite" --canary >"$build/canary.log" 2>&1
        if ! grep -q 'Invalid __global__ write' "$build/canary.log"; then
          echo "FAIL compute-sanitizer did not notice a write past the end"
          status=1
        fi
        for tool in memcheck racecheck synccheck initcheck; do
          step "$tool" 100 sh -c 'compute-sanitizer --tool "$1" --error-exitcode 9 "$2" --check-small \
            >"$3" 2>&1; rc=$?; grep -E "FAIL|checks,|SUMMARY" "$3"; exit $rc' - \
            "$tool" "$suite" "$build/$tool.log"
        done
      else
        echo "sanitize left out: no compute-sanitizer on the PATH"
      fi
      ;;
    *) echo "run.sh: unknown step '$word'; one of build check bench sanitize" >&2; exit 2 ;;
  esac
done
exit $status
