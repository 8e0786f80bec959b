#!/bin/bash
# Set-up, build and every test; the last thing it prints is ctest's summary.
#
#   tests/run.sh [ctest arguments...]          e.g. tests/run.sh -R safetensors
#
# LLMCTL_PYTHON names a Python that has torch, transformers and safetensors for the tests that
# compare with them; without it tests/.venv and then python3 are tried, and those tests are left
# out, with a line that says so, when none has them. LLMCTL_BUILD names another build folder;
# LLMCTL_WERROR=ON makes warnings errors.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${LLMCTL_BUILD:-build/tests}

samples/setup.sh
samples/setup.sh openmpi-bin iproute2 || echo "WARNING: the tests of mpirun may be left out" >&2
samples/build.sh "$folder" -DCMAKE_BUILD_TYPE=Release -DLLMCTL_WERROR="${LLMCTL_WERROR:-OFF}" \
  -DLLMCTL_PYTHON="${LLMCTL_PYTHON:-}"
exec ctest --test-dir "$folder" --output-on-failure --no-tests=error -j "$(nproc)" "$@"
