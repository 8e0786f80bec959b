"""Damaged copies of real checkpoints: one clear line and the right exit code, nothing written.

Truncations must be refused. Flipped bytes and odd values in config.json may be harmless, so there
the claim is weaker: done or refused in one line, never a crash, never our own fault (exit code 5).
"""
import json
import shutil
import subprocess

import torch

from families import CONTAINERS, FAMILIES, build, save, tp_sizes
from harness import BINARY, Checks, about, llmctl

ODD_VALUES = [None, -1, 0, 1, 3, 1.5, 1e30, 2**31, 2**62, 2**64, True, False, "", "x", "fp32", [], {},
              [1, 2], {"a": 1}, "\n", "é" * 50]


def attempt(source, folder, allowed):
    """inspect and convert: exit codes among `allowed`, one line when refused, nothing left behind."""
    for command in (["inspect", source], ["convert", source, folder / "out", "--to", "hf"],
                    ["convert", source, folder / "out", "--to", "ft", "--tp", "1"]):
        done = subprocess.run([BINARY, *map(str, command)], capture_output=True, timeout=120)
        stderr = done.stderr.decode(errors="replace")
        assert done.returncode in allowed, f"{command}: exit code {done.returncode}\n{stderr[-1500:]}"
        if done.returncode not in (0, 1):
            lines = stderr.strip().splitlines()
            errors = [line for line in lines if line.startswith("llmctl: error: ")]
            assert len(errors) == 1 and lines[-1] == errors[0], stderr
            left = [path.name for path in folder.iterdir() if path.name.startswith(("out", ".out"))]
            assert not left, f"{command} left {left}"
        shutil.rmtree(folder / "out", ignore_errors=True)


def one_layer(config):
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]


def check_container(container):
    def check(rng, folder):
        family = rng.choice(["gpt2", "bloom", "llama", "gpt_neox"])
        config = FAMILIES[family](rng)
        one_layer(config)
        source = folder / "hf"
        save(build(config), source, container)
        files = [path for path in sorted(source.iterdir())
                 if path.name != "generation_config.json" and path.name != "config.json"]
        for path in files:
            data = path.read_bytes()
            cuts = {0, 1, 7, 8, 9, len(data) - 1, len(data) // 2, *(rng.randrange(len(data)) for _ in range(6))}
            for cut in sorted(cuts):
                path.write_bytes(data[:cut])
                # An index may end in white space that nobody misses.
                whole = path.suffix == ".json" and cut >= len(data.rstrip())
                with about(f"{family} {path.name} cut to {cut} of {len(data)}"):
                    attempt(source, folder, {0} if whole else {3})
            path.write_bytes(data)
            for _ in range(12):
                # Headers lie at the front, and at the end in zip files.
                where = rng.choice([rng.randrange(min(200, len(data))), rng.randrange(len(data)),
                                    len(data) - 1 - rng.randrange(min(300, len(data)))])
                value = rng.randrange(256)
                path.write_bytes(data[:where] + bytes([value]) + data[where + 1:])
                with about(f"{family} {path.name} byte {where} set to {value}"):
                    attempt(source, folder, {0, 2, 3})
            path.write_bytes(data)
            path.unlink()
            with about(f"{family} without {path.name}"):
                attempt(source, folder, {2, 3})
            path.write_bytes(data)
        llmctl("inspect", source)
    return check


def check_config(family):
    def check(rng, folder):
        config = FAMILIES[family](rng)
        one_layer(config)
        source = folder / "hf"
        save(build(config), source, classic=rng.random() < 0.5)
        path = source / "config.json"
        text = path.read_text()
        stored = json.loads(text)
        for key in sorted(stored):
            for value in rng.sample(ODD_VALUES, 4):
                path.write_text(json.dumps(stored | {key: value}))
                with about(f"{key} = {value!r}"):
                    attempt(source, folder, {0, 2, 3})
        for broken in ("", "{", "[]", "null", text[:-3], text + "x", text.replace(":", ",", 1),
                       '{"model_type": "llama", "model_type": "gpt2"}', "[" * 100000,
                       '{"a":' * 50000, "\ufeff" + text, "\x00" + text):
            path.write_text(broken)
            with about(f"config.json is {broken[:40]!r}..."):
                attempt(source, folder, {3} if not broken.startswith("\ufeff") else {0, 3})
    return check


def check_ft(family):
    def check(rng, folder):
        config = FAMILIES[family](rng)
        one_layer(config)
        save(build(config), folder / "hf")
        tp = tp_sizes(config)[-1]
        llmctl("convert", folder / "hf", folder / "ft", "--to", "ft", "--tp", tp)
        source = folder / "ft" / f"{tp}-gpu"
        for path in rng.sample(sorted(source.glob("*.bin")), 6):
            data = path.read_bytes()
            for damaged in (data[:-1], data[:len(data) // 2], data + b"\0", data * 2, b""):
                path.write_bytes(damaged)
                with about(f"{path.name}: {len(damaged)} bytes in place of {len(data)}"):
                    attempt(source, folder, {3})
            path.unlink()
            if "lm_head" not in path.name:  # without one the gpt loaders take the embedding
                with about(f"without {path.name}"):
                    attempt(source, folder, {3})
            path.write_bytes(data)
        path = source / "config.ini"
        text = path.read_text()
        lines = text.splitlines()
        for index, line in enumerate(lines):
            key, equals, _ = line.partition("=")
            for value in (rng.sample(ODD_VALUES, 4) if equals else ["x"]):
                changed = [*lines[:index], f"{key}={value}" if equals else "x", *lines[index + 1:]]
                path.write_text("\n".join(changed) + "\n")
                with about(f"config.ini: {changed[index]!r}"):
                    attempt(source, folder, {0, 2, 3})
            path.write_text("\n".join([*lines[:index], *lines[index + 1:]]) + "\n")
            with about(f"config.ini without {line!r}"):
                attempt(source, folder, {0, 2, 3})
        path.write_text(text)
        llmctl("inspect", source)
    return check


def check_stray(rng, folder):
    """Torch files that are no state dict of tensors."""
    config = FAMILIES["gpt2"](rng)
    source = folder / "hf"
    stored = save(build(config), source, "torch-zip")
    path = source / "pytorch_model.bin"
    name = sorted(stored)[0]
    strangers = {
        "a number": 3, "a list": [1, 2], "nothing": {}, "an object": torch.nn.Linear(2, 2),
        "a nested dict": stored | {name: {"x": stored[name]}}, "a string": stored | {name: "x"},
        "another shape": stored | {name: torch.zeros(3, 5)},
        "integers": stored | {name: torch.zeros(stored[name].shape, dtype=torch.int64)},
        "a stranger beside them": stored | {"no.such.tensor": torch.zeros(2)},
        "one missing": {k: v for k, v in stored.items() if k != name},
        "complex": stored | {name: stored[name].to(torch.complex64)},
        "sparse": stored | {name: stored[name].to_sparse()},
        "quantised": stored | {name: torch.quantize_per_tensor(stored[name], 0.1, 0, torch.qint8)},
    }
    for what, content in strangers.items():
        for new in (True, False):
            try:
                torch.save(content, path, _use_new_zipfile_serialization=new)
            except Exception:  # torch itself cannot write this one
                continue
            with about(f"{what}, {'zip' if new else 'legacy'}"):
                attempt(source, folder, {2, 3})


def main():
    checks = Checks()
    for container in CONTAINERS:
        checks.run(f"container {container}", check_container(container))
    for family in ("gpt2", "opt", "bloom", "gptj", "gpt_neox", "llama", "qwen2", "mistral"):
        checks.run(f"config {family}", check_config(family))
    for family in ("gpt2", "opt", "bloom", "gptj", "gpt_neox", "llama", "qwen2"):
        checks.run(f"ft {family}", check_ft(family))
    checks.run("stray", check_stray)
    checks.finish()


if __name__ == "__main__":
    main()
