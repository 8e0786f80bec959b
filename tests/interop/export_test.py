"""Exports as Python reads them: plain safetensors whose values are those of the source."""
import json
import subprocess

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from harness import SOURCE, Checks, llmctl

SAMPLE = SOURCE / "samples" / "llama-stories"


def rows_of(tensor, rows):
    """A matrix of panels as rows."""
    if tensor.dim() != 4:
        return tensor
    panels = tensor.shape[0]
    return tensor.permute(0, 2, 1, 3).reshape(panels * 16, -1)[:rows]


def check_layer(tensors, source, layer, tp, rank):
    name = f"model.layers.{layer}."
    part = lambda t: t.chunk(tp)[rank]
    qkv = torch.cat([part(source[f"{name}self_attn.{x}_proj.weight"]) for x in "qkv"])
    assert torch.equal(rows_of(tensors[f"layers.{layer}.qkv"], len(qkv)), qkv)
    gate_up = torch.cat([part(source[f"{name}mlp.{x}_proj.weight"]) for x in ("gate", "up")])
    assert torch.equal(rows_of(tensors[f"layers.{layer}.gate_up"], len(gate_up)), gate_up)
    for ours, theirs in (("o", "self_attn.o_proj"), ("down", "mlp.down_proj")):
        want = part(source[f"{name}{theirs}.weight"])
        assert torch.equal(rows_of(tensors[f"layers.{layer}.{ours}"], len(want)), want)
    for ours, theirs in (("norm1", "input_layernorm"), ("norm2", "post_attention_layernorm")):
        got = tensors[f"layers.{layer}.{ours}"]
        assert got.dtype == torch.float32
        assert torch.equal(got, source[f"{name}{theirs}.weight"].float())


def check_export(out, source, tp, pp):
    model = json.loads((out / "model.json").read_text())
    assert (model["tensor_parallel_size"], model["pipeline_parallel_size"]) == (tp, pp)
    for number, entry in enumerate(model["ranks"]):
        path = out / entry["file"]
        tensors = load_file(path)
        with safe_open(path, "pt") as opened:
            assert opened.metadata()["rank"] == str(number)
        for layer in range(entry["first_layer"], entry["end_layer"]):
            check_layer(tensors, source, layer, tp, number % tp)
        want = source["model.embed_tokens.weight"].chunk(tp)[number % tp]
        assert torch.equal(rows_of(tensors["embed"], len(want)), want)
        assert all(t.count_nonzero() == 0 for n, t in tensors.items() if n.startswith("padding."))


def written(folder, *flags):
    out = folder / "out"
    llmctl("export", SAMPLE, out, *flags)
    return out


def check_grid(folder, layout, tp, pp):
    out = written(folder, "--tp", tp, "--pp", pp, "--matrix-layout", layout)
    check_export(out, load_file(SAMPLE / "model.safetensors"), tp, pp)


def check_zstd(folder):
    plain = written(folder) / "rank-00000.safetensors"
    packed = folder / "packed"
    llmctl("export", SAMPLE, packed, "--compress", "zstd")
    try:
        found = subprocess.run(["zstd", "-dc", packed / f"{plain.name}.zst"], check=True,
                               capture_output=True).stdout
    except FileNotFoundError:
        print("SKIPPED: zstd is not installed")
        return
    assert found == plain.read_bytes()


checks = Checks()
for layout in ("panels16", "rows"):
    for tp, pp in ((1, 1), (2, 2), (4, 1)):
        checks.run(f"safetensors reads {layout} at tp {tp} pp {pp}",
                   lambda rng, folder, case=(layout, tp, pp): check_grid(folder, *case))
checks.run("zstd gives the safetensors file back", lambda rng, folder: check_zstd(folder))
checks.finish()
