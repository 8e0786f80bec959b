#!/usr/bin/env python3
"""Times `llmctl reshard` against a plain O_DIRECT copy and `cp -r` of the same checkpoint, in turns.

    tests/bench/reshard.py SOURCE [--llmctl build/release/cli/llmctl] [--folder /var/tmp]
                           [--copy build/release/tests/bench/llmctl_bench_direct_copy]
                           [--tp 8] [--pp 1] [--rounds 5] [--max-memory 128M] [--idle 0] [--no-cp]

SOURCE is a Megatron or Yuan 2.0 checkpoint, 8 GB or more, e.g. one that `llmctl synth` made. Every
round runs the copy, cp, and reshard (as by default, and with --max-memory), each from a dropped page
cache (needs root; else that is said) and, with --idle, after so many seconds of quiet: a virtual
machine gives free memory back to its host meanwhile, and cp pays for getting it again. All end with
their bytes on the disk.

Resharding may write more than it reads (tensors that every rank keeps), so rates are of bytes read
and written added up, and the ratios are of rates: above 1 reshard is faster. Prints one line per run
and the medians. Needs disk for the source and the largest output; removes what it writes.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from convert import drop_caches, folder_bytes, timed  # noqa: E402


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    build = root / "build/release"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("--llmctl", default=build / "cli/llmctl")
    parser.add_argument("--copy", default=build / "tests/bench/llmctl_bench_direct_copy")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where to write")
    parser.add_argument("--tp", default="8")
    parser.add_argument("--pp", default="1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-memory", default="128M", help="the second, smaller bound to try")
    parser.add_argument("--idle", type=float, default=0)
    parser.add_argument("--no-cp", action="store_true")
    parser.add_argument("--more", nargs="*", default=[], help="further flags for reshard")
    args = parser.parse_args()

    cold = os.geteuid() == 0
    if not cold:
        print("not root: the page cache is not dropped, these are warm runs")
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="llmctl-bench-") as work:
        target = pathlib.Path(work) / "target"
        reshard = [args.llmctl, "reshard", args.source, target, "--tp", args.tp, "--pp", args.pp,
                   "--progress", "none", *args.more]
        commands = {
            "direct copy": [args.copy, args.source, target],
            "cp -r": ["sh", "-c", 'cp -r "$0" "$1" && sync -f "$1"', args.source, target],
            "reshard": reshard,
            f"reshard {args.max_memory}": [*reshard, "--max-memory", args.max_memory],
        }
        if args.no_cp:
            del commands["cp -r"]
        size = folder_bytes(args.source)
        rates = {name: [] for name in commands}
        seconds = {name: [] for name in commands}
        peak = {name: 0.0 for name in commands}
        for i in range(args.rounds):
            # Every other round the other way round: what runs first is at a disadvantage.
            for name in list(commands) if i % 2 == 0 else reversed(list(commands)):
                drop_caches() if cold else os.sync()
                time.sleep(args.idle)
                elapsed, rss = timed(commands[name])
                moved = size + folder_bytes(target)
                rates[name].append(moved / elapsed / 1e9)
                seconds[name].append(elapsed)
                peak[name] = max(peak[name], rss)
                print(f"round {i + 1}  {name:14} {elapsed:7.2f} s  {moved / elapsed / 1e9:5.2f} GB/s moved"
                      f"  peak resident {rss:6.0f} MiB", flush=True)
                shutil.rmtree(target)
        print(f"{size / 1e9:.2f} GB -> tp {args.tp} pp {args.pp}, {'cold' if cold else 'warm'}, "
              f"{args.idle:g} s idle before each, {os.cpu_count()} cores, medians of {args.rounds}:")
        plain = statistics.median(rates["direct copy"])
        for name in commands:
            rate = statistics.median(rates[name])
            print(f"  {name:14} {statistics.median(seconds[name]):7.2f} s  {rate:5.2f} GB/s moved, "
                  f"{rate / plain:4.2f} x direct copy, peak resident {peak[name]:.0f} MiB")


if __name__ == "__main__":
    main()
