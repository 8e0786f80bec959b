"""Random models in Megatron layouts, and Megatron directories held against them."""
import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import megatron_args
import megatron_forward
import megatron_layout as layout_of
import yuan
from families import assert_same_bits, build
from megatron_layout import Layout
from megatron_oracle_test import CONFIGS

# Attributes of args that a reshard corrects; all others are carried over as they are.
CORRECTED = {
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "model_parallel_size",
    "transformer_pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size",
    "num_layers_per_virtual_pipeline_stage", "pipeline_blocks", "pipeline_model_parallel_blocks",
    "pipeline_model_parallel_method", "padded_vocab_size", "sequence_parallel", "world_size",
    "data_parallel_size", "expert_model_parallel_size",
}


@dataclass
class Case:
    family: str
    weights: layout_of.Weights
    model: object  # transformers' model, or None


def random_case(rng, family=None, rows=None):
    """A model whose table has a number of rows that every size in use divides, unless given."""
    family = family or rng.choice(["gpt2", "llama", "bloom", "yuan"])
    if family == "yuan":
        dtype = rng.choice([torch.bfloat16, torch.float16, torch.float32])
        return Case(family, yuan.random_weights(
            rng, layers=rng.choice([4, 6, 8]), heads=8, head_dim=rng.choice([2, 4]),
            ffn=8 * rng.randint(2, 9), vocab=rows or 8 * rng.randint(3, 9), dtype=dtype), None)
    config = CONFIGS[family](rng)
    config.vocab_size = rows or 8 * rng.randint(8, 16)
    model = build(config, rng.choice([torch.bfloat16, torch.float16, torch.float32]))
    return Case(family, layout_of.FROM_HF[family](model), model)


def random_blocks(rng, layers, stages):
    """Layers of each stage, at least one on each, by random cuts."""
    cuts = sorted(rng.sample(range(1, layers), stages - 1))
    return tuple(b - a for a, b in zip([0, *cuts], [*cuts, layers]))


def random_layout(rng, case, like=None, max_tp=8):
    """A layout that the model fits. `like` keeps that one's names and version."""
    g = case.weights.geometry
    tp = rng.choice([t for t in (1, 2, 4, 8) if t <= max_tp and g.kv_heads % t == 0
                     and g.ffn % t == 0])
    pp = rng.choice([p for p in (1, 2, 4) if p <= g.layers])
    layout = like or random_dialect(rng, case)
    vp, blocks = 1, ()
    if layout.order < 2.0:
        pp = 1  # there were no stages then
    elif g.family == "yuan" and pp > 1:
        blocks = random_blocks(rng, g.layers, pp)
    elif pp > 1 and g.layers % (2 * pp) == 0 and rng.random() < 0.4:
        vp = 2
    if g.layers % (pp * vp) != 0 and not blocks:
        blocks = random_blocks(rng, g.layers, pp)
    return replace(layout, tp=tp, pp=pp, vp=vp, blocks=blocks, vocab=g.vocab)


def random_dialect(rng, case):
    g = case.weights.geometry
    iteration = rng.choice([1, 10, 63578, 12345678])
    common = dict(iteration=iteration, with_optimizer=rng.random() < 0.3,
                  with_rng=rng.random() < 0.8, divisible_by=1)
    if g.family == "yuan":
        return Layout(**common)
    choices = [dict(spelling="layernorm"), dict(spelling="norm"), dict(release=True)]
    if g.family == "gpt2":
        choices += [dict(spelling="v1", version=v) for v in (None, 0, 1.0, 2.0)]
    if g.family != "bloom":
        choices += [dict(style="core-local"), dict(style="core-te")]
    return Layout(**common, **rng.choice(choices))


def blocks_flag(layout):
    return ("--pipeline-blocks", ",".join(map(str, layout.blocks))) if layout.blocks else ()


def target_flags(layout):
    """The flags that ask for the layout's sizes."""
    flags = ["--tp", layout.tp, "--pp", layout.pp, *blocks_flag(layout)]
    if layout.vp > 1:
        flags += ["--virtual-pp", layout.vp]
    return flags


def resharded(weights, source, target, multiple=1):
    """(weights, layout) that resharding `source` to the sizes of `target` must give: the table as
    it is when tp divides it, else longer by rows of zeros."""
    source = layout_of.complete(weights, source)
    rows = source.vocab
    if rows % target.tp != 0:
        unit = multiple * target.tp
        rows = math.ceil(rows / unit) * unit
    table = layout_of.Weights(
        replace(weights.geometry, vocab=source.vocab),
        weights.tensors | {n: weights.table(n, source.vocab) for n in ("embed", "head")
                           if n in weights.tensors}, padding_seed=None)
    return table, replace(target, vocab=rows)


def tensors_of(node, prefix=""):
    """Every tensor by its path of keys."""
    out = {}
    for key, value in node.items():
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(value, torch.Tensor):
            out[path] = value
        elif isinstance(value, dict):
            out |= tensors_of(value, path)
    return out


def step_of(root):
    tracker = (Path(root) / "latest_checkpointed_iteration.txt").read_text()
    return Path(root) / (tracker if tracker == "release" else f"iter_{int(tracker):07d}")


def load_strictly(path):
    """By torch's full unpickler and by its restricted one, which must see the same tensors."""
    full = megatron_forward.load(path)
    with torch.serialization.safe_globals(megatron_args.SAFE_GLOBALS):
        restricted = torch.load(path, map_location="cpu", weights_only=True)
    a, b = tensors_of(full), tensors_of(restricted)
    assert a.keys() == b.keys()
    for name in a:
        assert_same_bits(b[name], a[name], name)
    return full




def check_directory(root, weights, layout, source_args=None, keep_rng=False):
    """The directory holds exactly these weights in this layout, with args that say so."""
    root = Path(root)
    wanted_tracker = "release" if layout.release else str(layout.iteration)
    assert (root / "latest_checkpointed_iteration.txt").read_text() == wanted_tracker
    step = root / layout.step_dir()
    folders = {layout.stage_dir(t, p) for t in range(layout.tp) for p in range(layout.pp)}
    found = {path.name for path in step.iterdir()} - {"llmctl-manifest.json"}
    assert found == folders, f"directories {sorted(found)}, expected {sorted(folders)}"
    for stage in range(layout.pp):
        for rank in range(layout.tp):
            name = layout.stage_dir(rank, stage)
            content = load_strictly(step / name / "model_optim_rng.pt")
            wanted = layout_of.model_chunks(weights, layout, stage, rank)
            _check_models(content, wanted, name)
            assert content["iteration"] == layout.iteration, name
            assert content.get("checkpoint_version", 0) == (layout.version or 0), name
            for key in ("optimizer", "opt_param_scheduler", "lr_scheduler"):
                assert key not in content, f"{name}: {key}"
            generators = {"rng_state", "random_rng_state", "rng_tracker_states"} & set(content)
            assert bool(generators) == keep_rng, f"{name}: {generators}"
            if source_args is not None:
                check_args(content["args"], source_args, weights.geometry, layout)


def _check_models(content, wanted, where):
    models = {k for k in content if k.startswith("model")}
    assert models == set(wanted), f"{where}: {models}"
    for key, model in wanted.items():
        a, b = tensors_of(content[key]), tensors_of(model)
        assert a.keys() == b.keys(), f"{where} {key}: {sorted(a.keys() ^ b.keys())}"
        for name, tensor in b.items():
            assert_same_bits(a[name], tensor, f"{where} {key} {name}")
            assert a[name].is_contiguous(), name
            storage = a[name].untyped_storage().nbytes()
            assert storage == a[name].numel() * a[name].element_size(), f"{name}: {storage} bytes"


def check_args(args, source, geometry, layout):
    """All that is not corrected is as in the source; all that is, is right."""
    assert isinstance(args, argparse.Namespace)
    before, after = vars(source), vars(args)
    for name, value in before.items():
        assert name in after, f"args.{name} is lost"
        if name not in CORRECTED:
            assert after[name] == value, f"args.{name} is {after[name]!r}, was {value!r}"
            assert type(after[name]) is type(value), f"args.{name} is a {type(after[name])}"
    extra = set(after) - set(before) - CORRECTED
    assert not extra, f"args that were not there: {extra}"
    wanted = {"world_size": layout.tp * layout.pp, "data_parallel_size": 1,
              "padded_vocab_size": layout.vocab, "model_parallel_size": layout.tp,
              "tensor_model_parallel_size": layout.tp, "pipeline_model_parallel_size": layout.pp,
              "transformer_pipeline_model_parallel_size": layout.pp,
              "virtual_pipeline_model_parallel_size": layout.vp if layout.vp > 1 else None,
              "num_layers_per_virtual_pipeline_stage": (
                  geometry.layers // (layout.pp * layout.vp) if layout.vp > 1 else None)}
    for name, value in wanted.items():
        if name in before or name in after:
            assert after[name] == value, f"args.{name} is {after[name]!r}, expected {value!r}"
    if "sequence_parallel" in before:
        wanted = layout.tp > 1 and before["sequence_parallel"]
        assert after["sequence_parallel"] is wanted, after["sequence_parallel"]
    if geometry.family == "yuan":
        blocks = list(layout.blocks) or [geometry.layers // layout.pp] * layout.pp
        assert after["pipeline_blocks"] == blocks, after["pipeline_blocks"]
        if after["pipeline_model_parallel_method"] == "block":
            assert after["pipeline_model_parallel_blocks"] == ",".join(map(str, blocks))
        else:
            assert after["pipeline_model_parallel_method"] == "uniform" and len(set(blocks)) == 1


def change(root, folder, edit):
    """Rewrites one rank's file after `edit` had its content."""
    path = step_of(root) / folder / "model_optim_rng.pt"
    content = megatron_forward.load(path)
    edit(content)
    torch.save(content, path)


def files_of(root):
    """Everything but the manifest, which names the source."""
    return {str(path.relative_to(root)): path.read_bytes()
            for path in sorted(Path(root).rglob("*"))
            if path.is_file() and path.name != "llmctl-manifest.json"}


