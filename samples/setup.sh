#!/bin/bash
# Installs what building llmctl needs and this Debian or Ubuntu machine lacks. Asks nothing, says
# what it installs, installs nothing that is already there. Used by samples/quickstart.sh and
# tests/run.sh; run it alone to prepare a machine.
#
#   samples/setup.sh [further packages...]
set -euo pipefail

packages=(
  g++ cmake ninja-build pkg-config
  libcli11-dev nlohmann-json3-dev doctest-dev
  libpcre2-dev libutf8proc-dev
  libdeflate-dev libxxhash-dev libzstd-dev
  libopenmpi-dev
  "$@"
)

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "setup: this is no Debian or Ubuntu machine; install by hand what is missing of:" >&2
  echo "setup:   ${packages[*]}" >&2
  exit 0 # CMake names what it cannot find.
fi

is_installed() {
  [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# Tools may come from elsewhere than a package; libraries are looked up by package.
is_there() {
  case $1 in
    g++ | cmake) command -v "$1" >/dev/null || is_installed "$1" ;;
    ninja-build) command -v ninja >/dev/null || is_installed "$1" ;;
    pkg-config) command -v pkg-config >/dev/null || is_installed "$1" ;;
    *) is_installed "$1" ;;
  esac
}

missing=()
for package in "${packages[@]}"; do
  is_there "$package" || missing+=("$package")
done

if ((${#missing[@]} == 0)); then
  echo "setup: everything that the build needs is installed"
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "setup: these packages are missing and there is no sudo; as root, run" >&2
    echo "setup:   apt-get update && apt-get install -y ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

echo "setup: installing ${missing[*]}"
as_root+=(env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a)
apt=(apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
# A stale or empty package list is the usual reason for a failed install on a fresh machine; a
# third party's broken repository is no reason to stop here.
"${as_root[@]}" "${apt[@]}" update || echo "setup: 'apt-get update' failed; trying to go on" >&2
"${as_root[@]}" "${apt[@]}" install -y --no-install-recommends "${missing[@]}"
echo "setup: installed ${missing[*]}"
