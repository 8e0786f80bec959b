#!/usr/bin/env python3
"""Makes every call of a small conversion fail in turn, and kills it there: always old or new, never half.

Needs $LLMCTL_BINARY and $LLMCTL_FAULT_SHIM (the library built from fault_shim.c). By default every number of each call
is tried, of allocations 40 spread over the run; LLMCTL_FAULTS_ALL=1 tries all of those too. Prints each breach and fails if there is one.
"""

import concurrent.futures
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile

LLMCTL = os.environ["LLMCTL_BINARY"]
SHIM = os.environ["LLMCTL_FAULT_SHIM"]
ALL = bool(os.environ.get("LLMCTL_FAULTS_ALL"))
POINTS = 40  # of allocations, of which there are thousands; every other call fails at each of its numbers

# What each call may do.
ACTIONS = {
    "read": ["EIO", "SHORT", "KILL"],
    "write": ["EIO", "ENOSPC", "SHORT", "KILL"],
    "sync": ["EIO", "KILL"],
    "rename": ["EIO", "KILL"],
    "open": ["EACCES", "EIO", "KILL"],
    "allocate": ["ENOSPC", "KILL"],
    "map": ["ENOMEM"],
    "malloc": ["ENOMEM"],
    "mkdir": ["ENOSPC", "KILL"],
}


# After which a run is continued with --resume.
RESUMED = [("read", "KILL"), ("write", "KILL"), ("write", "ENOSPC"), ("sync", "KILL"), ("sync", "EIO"), ("rename", "KILL")]


def write_model(folder, hidden, ffn, vocab, layers=2, heads=4):
    """A small LLaMA, values random."""
    folder.mkdir()
    shapes = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden], "lm_head.weight": [vocab, hidden]}
    for layer in range(layers):
        base = f"model.layers.{layer}."
        for name in "qkvo":
            shapes[f"{base}self_attn.{name}_proj.weight"] = [hidden, hidden]
        for name, shape in {"gate": [ffn, hidden], "up": [ffn, hidden], "down": [hidden, ffn]}.items():
            shapes[f"{base}mlp.{name}_proj.weight"] = shape
        shapes[base + "input_layernorm.weight"] = shapes[base + "post_attention_layernorm.weight"] = [hidden]
    header, data, rng = {}, b"", random.Random(1)
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        piece = struct.pack(f"<{count}f", *(rng.gauss(0, 1) for _ in range(count)))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn,
        "num_attention_heads": heads, "num_key_value_heads": heads, "num_hidden_layers": layers, "vocab_size": vocab,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
        "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text("{}")


def tree(folder):
    """Names and contents of all files below; None when there is no such folder."""
    if not folder.exists():
        return None
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Job:
    """One command line that replaces the folder `out`."""

    def __init__(self, name, out, arguments, root, environment):
        self.name, self.out, self.arguments, self.root = name, out, arguments, root
        self.environment = environment
        self.old = root / "old"
        self.source = root / "source"

    def run(self, place, fault=None, count_file=None, extra=()):
        # Small as the job is, everything it does is entered into the journal at once.
        env = dict(os.environ, LD_PRELOAD=SHIM, LLMCTL_JOURNAL_BYTES="1", **self.environment)
        if fault:
            env["LLMCTL_FAULT"] = fault
        if count_file:
            env["LLMCTL_FAULT_COUNT"] = str(count_file)
        return subprocess.run([LLMCTL, *self.arguments, "--overwrite", "--jobs", "1", *extra], cwd=place, env=env,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)

    def fresh_place(self):
        place = pathlib.Path(tempfile.mkdtemp(dir=self.root))
        shutil.copytree(self.source, place / "source")
        shutil.copytree(self.old, place / self.out)
        return place


def breaches_of_next(job, place, new, resume):
    """A run without faults mends what one has left, with --resume or without."""
    again = job.run(place, extra=["--resume"] if resume else [])
    if again.returncode != 0 or tree(place / job.out) != new:
        return [f"the next run does not mend it: exit {again.returncode}, {again.stderr!r}"]
    return []


def breaches_of(job, fault, resume, old, new):
    """What was wrong with one run; an empty list is right."""
    place = job.fresh_place()
    try:
        result = job.run(place, fault, extra=["--resume"] if resume else [])
        out = tree(place / job.out)
        state = "old" if out == old else "new" if out == new else "HALF"
        lines = [line for line in result.stderr.splitlines() if not line.startswith("llmctl: note: ")]
        wrong = []
        if state == "HALF":
            wrong.append("neither the old directory nor the new one stands")
        if fault.endswith("KILL"):
            if result.returncode not in (-9, 0):
                wrong.append(f"exit {result.returncode}")
            wrong += breaches_of_next(job, place, new, resume)
        elif resume and result.returncode == 4:
            if len(lines) != 1 or not lines[0].startswith("llmctl: error: "):
                wrong.append(f"stderr {result.stderr!r}")
            wrong += breaches_of_next(job, place, new, resume)
        elif result.returncode == 0:
            if state != "new":
                wrong.append(f"exit 0, but the {state} directory stands")
        else:
            if result.returncode != 4:
                wrong.append(f"exit {result.returncode}")
            if len(lines) != 1 or not lines[0].startswith("llmctl: error: "):
                wrong.append(f"stderr {result.stderr!r}")
        left = [entry.name for entry in place.iterdir() if entry.name not in ("source", job.out)]
        # Memory that ends inside a destructor ends the process like a kill, and while the old directory is removed it
        # ends only that; a disk that does not confirm that the new directory stands keeps the old one. All leave the
        # next run to clear up.
        if left and (fault.startswith("malloc:") or result.returncode == 4 and state == "new"):
            wrong += breaches_of_next(job, place, new, resume)
            left = [entry.name for entry in place.iterdir() if entry.name not in ("source", job.out)]
        if left:
            wrong.append(f"left behind: {left}")
        return wrong
    finally:
        shutil.rmtree(place)


def points(call, total):
    if ALL or call != "malloc" or total <= POINTS:
        return range(1, total + 1)
    # The first and last ones are where files are opened and the result is published.
    middle = {1 + round(i * (total - 1) / (POINTS - 1)) for i in range(POINTS)}
    return sorted(middle | set(range(max(1, total - 3), total + 1)))


def sweep(job):
    # The old state is the same model written otherwise, so that every file differs.
    result = job.run(job.root)
    assert result.returncode == 0, result.stderr
    (job.root / job.out).rename(job.root / "complete")
    other = ["--megatron-names", "core"] if "reshard" in job.arguments else ["--dtype", "fp16"]
    result = job.run(job.root, extra=other)
    assert result.returncode == 0, result.stderr
    (job.root / job.out).rename(job.old)
    old, new = tree(job.old), tree(job.root / "complete")
    assert old != new
    place = job.fresh_place()
    result = job.run(place, count_file=job.root / "counts")
    assert result.returncode == 0 and tree(place / job.out) == new, result.stderr
    shutil.rmtree(place)
    counts = {name: int(count) for name, count in map(str.split, (job.root / "counts").read_text().splitlines())}
    assert counts["write"] > 0 and counts["read"] > 0 and counts["malloc"] > 0, counts
    faults = [(f"{call}:{n}:{action}", False) for call, actions in ACTIONS.items() for action in actions
              for n in points(call, counts[call])]
    faults += [(f"{call}:{n}:{action}", True) for call, action in RESUMED for n in points(call, counts[call])]
    bad = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for fault, wrong in zip(faults, pool.map(lambda fault: breaches_of(job, *fault, old, new), faults)):
            for what in wrong:
                print(f"{job.name} {fault[0]}{' --resume' if fault[1] else ''}: {what}")
            bad += bool(wrong)
    print(f"{job.name}: {len(faults)} faults of {counts}, {bad} breaches")
    return bad


SMALL = {"hidden": 16, "ffn": 24, "vocab": 40}
JOBS = {
    "convert to ft": ("2-gpu", ["convert", "source", "2-gpu", "--to", "ft", "--tp", "2"], SMALL, {}),
    "reshard": ("out", ["reshard", "source", "out", "--tp", "2", "--pp", "1"], SMALL, {}),
    # As a job of many gigabytes is done: O_DIRECT where the temporary folder's file system has it.
    "reshard past the page cache": ("out", ["reshard", "source", "out", "--tp", "2", "--pp", "1"],
                                    {"hidden": 64, "ffn": 96, "vocab": 128}, {"LLMCTL_LARGE_JOB_BYTES": "1"}),
    "convert to hf": ("out", ["convert", "source", "out", "--to", "hf"], SMALL, {}),
}


def main():
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (out, arguments, sizes, environment)) in enumerate(JOBS.items()):
            root = pathlib.Path(folder) / str(number)
            root.mkdir()
            write_model(root / "source", **sizes)
            if "reshard" in arguments:
                (root / "source").rename(root / "hf")
                subprocess.run([LLMCTL, "convert", "hf", "source", "--to", "megatron", "--pp", "2"], cwd=root, check=True,
                               stderr=subprocess.DEVNULL)
            bad += sweep(Job(name, out, arguments, root, environment))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
