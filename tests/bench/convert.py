#!/usr/bin/env python3
"""Times `llmctl convert` against `cp -r` of the same bytes, alternately in one run.

    tests/bench/convert.py [--llmctl build/release/cli/llmctl] [--folder /var/tmp] [--rounds 3]
                           [--gigabytes 4] [--source-dtype F16] [--warm] [--model llama]

Prints one line per run and the ratio of the medians (above 1: llmctl is faster than cp). Both
sides end with their bytes on the disk: convert syncs what it writes, and the time of cp includes
a sync of the file system. Without --warm the page cache is dropped before each run, which needs
root; without root that is said and the runs are warm. Needs three times the checkpoint's size of
free disk and Python 3 with nothing installed. Everything it writes is removed at the end.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time


def drop_caches():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def timed(command):
    """Seconds and peak resident MiB of the command, and of it alone."""
    start = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {process.returncode}")
    return time.monotonic() - start, usage.ru_maxrss / 1024


def folder_bytes(path):
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llmctl", default=root / "build/release/cli/llmctl")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where to work")
    parser.add_argument("--model", choices=["llama", "bloom-560m"], default="llama")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--source-dtype", default="F16")
    parser.add_argument("--tp", default="2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="leave the page cache as it is")
    args = parser.parse_args()

    cold = not args.warm
    if cold and os.geteuid() != 0:
        print("not root: the page cache is not dropped, these are warm runs")
        cold = False
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="llmctl-bench-") as work:
        work = pathlib.Path(work)
        source, target = work / "source", work / "target"
        subprocess.run([sys.executable, root / "tests/bench/make_checkpoint.py", args.model, source,
                        "--gigabytes", str(args.gigabytes), "--dtype", args.source_dtype],
                       check=True)
        size = folder_bytes(source)
        commands = {
            "cp -r": ["sh", "-c", 'cp -r "$0" "$1" && sync -f "$1"', source, target],
            "convert": [args.llmctl, "convert", source, target, "--to", "ft", "--tp", args.tp,
                        "--dtype", "fp16"],
        }
        seconds = {name: [] for name in commands}
        peak = 0.0
        if not cold:  # Read the source once, so that the first run is as warm as the others.
            subprocess.run(["sh", "-c", 'cat "$0"/* > /dev/null', source], check=True)
        for i in range(args.rounds):
            for name, command in commands.items():
                if cold:
                    drop_caches()
                else:
                    os.sync()
                elapsed, rss = timed(command)
                seconds[name].append(elapsed)
                if name == "convert":
                    peak = max(peak, rss)
                print(f"round {i + 1}  {name:8} {elapsed:7.2f} s  {size / elapsed / 1e9:5.2f} GB/s"
                      f"  peak resident {rss:6.0f} MiB", flush=True)
                shutil.rmtree(target)
        median = {name: statistics.median(times) for name, times in seconds.items()}
        print(f"{args.model} {args.source_dtype} -> ft tp={args.tp} fp16, {size / 1e9:.2f} GB, "
              f"{'cold' if cold else 'warm'}, {os.cpu_count()} cores: "
              f"convert {median['convert']:.2f} s, cp -r {median['cp -r']:.2f} s, "
              f"ratio {median['cp -r'] / median['convert']:.2f}, "
              f"peak resident {peak:.0f} MiB")


if __name__ == "__main__":
    main()
