#!/bin/sh
# Fails when an object compiled for one instruction set shares code with the rest of the library.
# A weak symbol there (an inline function of some header) could be the copy that the linker keeps,
# and a CPU without that instruction set would then run it. Usage: isa_objects.sh ARCHIVE
set -eu
shared=$(nm -A "$1" | grep -E '_(avx2|avx512[a-z0-9]*)\.cc\.o:' | grep -E ' [WVu] ' | grep -v 'DW\.ref\.' || true)
if [ -n "$shared" ]; then
  echo "$shared" | c++filt
  echo "these functions are shared with other objects: move them into an unnamed namespace"
  exit 1
fi
if [ "$(uname -m)" = x86_64 ] && ! nm -A "$1" | grep -qE '_avx2\.cc\.o:'; then
  echo "no object of an instruction set in $1"
  exit 1
fi
