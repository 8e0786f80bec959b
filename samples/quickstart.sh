#!/bin/bash
# The main job of llmctl on a real model, from nothing: install what is missing, build, convert the
# sample LLaMA to FasterTransformer's layout for two GPUs, prove that nothing changed, and run it.
#
# LLMCTL_BINARY names an llmctl that is already built; set-up and build are then left out.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
show() {
  local argument line='$ llmctl'
  for argument in "$@"; do
    [[ $argument == *' '* ]] && argument="'$argument'"
    line+=" $argument"
  done
  printf '%s\n' "$line"
  "$llmctl" "$@"
}

model=samples/llama-stories
prompt="Once upon a time"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

llmctl=${LLMCTL_BINARY:-build/release/cli/llmctl}
if [[ -z ${LLMCTL_BINARY:-} ]]; then
  say "Set-up: install what is missing"
  samples/setup.sh

  say "Build llmctl (release, without tests) in build/release"
  samples/build.sh build/release -DCMAKE_BUILD_TYPE=Release -DLLMCTL_BUILD_TESTS=OFF
fi

say "What is this checkpoint?"
show inspect $model

say "Convert it from Hugging Face's layout to FasterTransformer's, tensor parallel size 2"
show convert $model "$work/ft" --to ft --tp 2

say "Are the weights still the same, bit for bit? (exit code 0: yes)"
show diff $model "$work/ft"

say "Run the converted checkpoint on two tensor-parallel ranks"
show run "$work/ft" --tp 2 --dtype fp32 --prompt "$prompt" -n 80 | tee "$work/tp2.txt"

say "Run it again as two pipeline stages"
show run "$work/ft" --pp 2 --dtype fp32 --prompt "$prompt" -n 80 | tee "$work/pp2.txt"

tail -n +2 "$work/tp2.txt" >"$work/tp2.text"
tail -n +2 "$work/pp2.txt" >"$work/pp2.text"
if ! cmp -s "$work/tp2.text" "$work/pp2.text"; then
  echo "quickstart: the two runs printed different texts" >&2
  exit 1
fi

say "Done"
cat <<END
Converted $model (Hugging Face safetensors) to FasterTransformer at tp=2, found no difference
between the two, ran the result at tp=2 and at pp=2 and got the same text. The converted copy was
temporary and is gone. The binary is $llmctl; '$llmctl --help' says what else it does.
END
