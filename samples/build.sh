#!/bin/bash
# Configures and builds llmctl: samples/build.sh FOLDER [cmake arguments...]. Uses ccache and mold
# when they are there.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$1
shift
arguments=()
command -v ccache >/dev/null && arguments+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
# GCC before 12.1 does not know the name.
if command -v mold >/dev/null &&
  echo 'int main() {}' | "${CXX:-c++}" -fuse-ld=mold -x c++ -o /dev/null - 2>/dev/null; then
  arguments+=(-DCMAKE_EXE_LINKER_FLAGS=-fuse-ld=mold)
fi

# One compiler takes up to 1.5 GB: on a small machine fewer at once are faster than swapping.
cores=$(nproc)
memory_kb=$(awk '/MemAvailable/ {print $2}' /proc/meminfo)
jobs=$((memory_kb / 1500000))
((jobs >= 1)) || jobs=1
((jobs <= cores)) || jobs=$cores

cmake -S . -B "$folder" -G Ninja "${arguments[@]}" "$@"
cmake --build "$folder" --parallel "$jobs"
