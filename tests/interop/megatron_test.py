"""`llmctl reshard`, `convert`, `digest` and `inspect` on checkpoints as Megatron and Yuan 2.0 write
them, for random models and layouts."""
import json
import math
import os
import shutil

import torch
import transformers

import megatron_forward
import megatron_layout as layout_of
import yuan
from families import assert_same_bits, read_safetensors
from harness import Checks, about, llmctl, llmctl_json
from megatron_cases import (change, check_directory, files_of, random_case, random_layout, resharded,
                            step_of, target_flags, tensors_of)
from megatron_layout import Layout, replace
from run_test import assert_close, run


def digest(path):
    return llmctl("digest", path).split()[0]


def first_args(root, layout):
    path = root / layout.step_dir() / layout.stage_dir(0, 0) / "model_optim_rng.pt"
    return megatron_forward.load(path)["args"]


def check_reshard(number):
    """a -> b is what the oracle writes for b; b of a is b of (1x1 of a), byte for byte."""
    def check(rng, folder):
        case = random_case(rng)
        a = random_layout(rng, case)
        b = random_layout(rng, case, like=a)
        with about(f"{case.weights.geometry}\n{a}\n{b}"):
            source = folder / "a"
            layout_of.write(case.weights, source, a)
            llmctl("reshard", source, folder / "b", *target_flags(b))
            weights, wanted = resharded(case.weights, a, b)
            check_directory(folder / "b", weights, wanted, first_args(source, a))
            llmctl("reshard", source, folder / "one", "--tp", 1, "--pp", 1)
            llmctl("reshard", folder / "one", folder / "b2", *target_flags(b))
            assert files_of(folder / "b") == files_of(folder / "b2"), "through 1x1"
            one = digest(source)
            for other in ("b", "one"):
                assert digest(folder / other) == one, f"digest of {other}"
            text = json.dumps(llmctl_json("inspect", source))
            g = case.weights.geometry
            for value in (g.hidden, g.heads, g.layers, a.vocab):
                assert str(value) in text, f"{value} is not in {text[:500]}"
    return check


def check_padding(rng, folder):
    """A table that the new tp does not divide grows by zeros; one that it divides stays."""
    for rows, tp in ((90, 4), (90, 2), (81, 8), (96, 8)):
        case = random_case(rng, rng.choice(["gpt2", "llama"]), rows=rows)
        g = case.weights.geometry
        tp = math.gcd(tp, g.kv_heads)
        a = Layout(vocab=rows, divisible_by=4)
        b = Layout(tp=tp, divisible_by=4)
        name = f"{rows}-{tp}-{len(list(folder.iterdir()))}"
        with about(f"{name} {g.family}"):
            layout_of.write(case.weights, folder / name, a)
            llmctl("reshard", folder / name, folder / f"{name}-b", *target_flags(b))
            weights, wanted = resharded(case.weights, a, b, multiple=4)
            check_directory(folder / f"{name}-b", weights, wanted, first_args(folder / name, a))


def check_hf(family):
    """Megatron -> HF gives the source's tensors and transformers' logits; HF -> Megatron -> HF the
    same tensors bit for bit."""
    def check(rng, folder):
        case = random_case(rng, family)
        g = case.weights.geometry
        case.model.save_pretrained(folder / "hf")
        layout = random_layout(rng, case)
        prompt = [rng.randrange(3, g.vocab) for _ in range(rng.randint(2, 15))]
        with about(f"{g}\n{layout}"):
            layout_of.write(case.weights, folder / "m", layout)
            assert digest(folder / "m") == digest(folder / "hf"), "digest"
            llmctl("convert", folder / "m", folder / "back", "--to", "hf")
            stored = read_safetensors(folder / "hf")
            tensors = read_safetensors(folder / "back")
            assert set(tensors) == set(stored), sorted(set(tensors) ^ set(stored))
            for name, tensor in stored.items():
                assert_same_bits(tensors[name], tensor, name)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder / "hf", dtype=torch.float32, attn_implementation="eager").eval()
            with torch.no_grad():
                logits = model(torch.tensor([prompt])).logits[0].numpy()
            for path in ("back", "m"):
                actual, _ = run(folder / path, prompt, folder, "--dtype", "fp32", new_tokens=1)
                assert_close(actual[:, :g.vocab], logits)
            for tp, pp in ((1, 1), (2, 2), (4, 1)):
                if g.kv_heads % tp:
                    continue
                with about(f"to tp={tp} pp={pp}"):
                    out = folder / f"m-{tp}-{pp}"
                    llmctl("convert", folder / "hf", out, "--to", "megatron", "--tp", tp, "--pp", pp)
                    again = folder / f"hf-{tp}-{pp}"
                    llmctl("convert", out, again, "--to", "hf")
                    tensors = read_safetensors(again)
                    for name, tensor in stored.items():
                        assert_same_bits(tensors[name], tensor, name)
                    if g.dtype == torch.float32:
                        actual = megatron_forward.logits(step_of(out), prompt)
                        assert_close(actual[:, :g.vocab].numpy(), logits)
    return check


def check_yuan(rng, folder):
    """Two steps of the original scripts, directly and through --via, and their formulas."""
    stages = rng.choice([32, 16, 5])
    blocks = tuple(yuan.BLOCKS_102B) if stages == 32 else tuple(
        rng.choice([1, 2, 3]) for _ in range(stages))
    tp = rng.choice([4, 8])
    weights = yuan.random_weights(rng, layers=sum(blocks), heads=8, head_dim=2,
                                  vocab=8 * rng.randint(4, 8), dtype=torch.bfloat16)
    source = Layout(pp=stages, blocks=blocks, vocab=weights.geometry.vocab)
    layout_of.write(weights, folder / "a", source)
    llmctl("reshard", folder / "a", folder / "direct", "--tp", tp, "--pp", 1)
    llmctl("reshard", folder / "a", folder / "two", "--tp", tp, "--pp", 1, "--via", folder / "via")
    args = first_args(folder / "a", source)
    target = replace(source, pp=1, blocks=(), tp=tp)
    check_directory(folder / "direct", *resharded(weights, source, target), args)
    check_directory(folder / "via", *resharded(weights, source, replace(source, tp=tp)), args)
    assert files_of(folder / "direct") == files_of(folder / "two"), "--via"
    llmctl("reshard", folder / "via", folder / "second", "--tp", tp, "--pp", 1)
    assert files_of(folder / "direct") == files_of(folder / "second"), "from the one between"
    # What the scripts make of it, the copy of the table apart that only they leave.
    models = [megatron_forward.load(folder / "a" / source.step_dir() / source.stage_dir(0, p)
                                    / "model_optim_rng.pt")["model"] for p in range(stages)]
    split = [yuan.split_tp(model, tp) for model in models]
    for rank in range(tp):
        wanted = yuan.merge_pp([parts[rank] for parts in split], blocks)
        del wanted["word_embeddings_for_head"]
        path = folder / "direct" / target.step_dir() / target.stage_dir(rank, 0)
        actual = tensors_of(megatron_forward.load(path / "model_optim_rng.pt")["model"])
        wanted = tensors_of(wanted)
        assert actual.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert_same_bits(actual[name], tensor, f"rank {rank} {name}")
    llmctl("reshard", folder / "direct", folder / "back", "--tp", 1, "--pp", stages,
           "--pipeline-blocks", ",".join(map(str, blocks)))
    check_directory(folder / "back", weights, source, args)


def check_yuan_hf(rng, folder):
    """Yuan's Hugging Face form and its Megatron form are one model, both ways."""
    weights = yuan.random_weights(rng, layers=4, heads=8, head_dim=4, vocab=128)
    layout = Layout(tp=2, pp=2, blocks=(1, 3), vocab=128)
    layout_of.write(weights, folder / "m", layout)
    container = rng.choice(["bin", "safetensors"])
    stored = yuan.write_hugging_face(weights, folder / "hf", container=container)
    assert digest(folder / "m") == digest(folder / "hf")
    llmctl("convert", folder / "m", folder / "to-hf", "--to", "hf")
    for name, tensor in read_safetensors(folder / "to-hf").items():
        assert_same_bits(tensor, stored[name], name)
    llmctl("convert", folder / "hf", folder / "to-m", "--to", "megatron", "--tp", 2, "--pp", 2,
           "--pipeline-blocks", "1,3")
    step = step_of(folder / "to-m")
    for stage in range(2):
        for rank in range(2):
            actual = tensors_of(megatron_forward.load(
                step / layout.stage_dir(rank, stage) / "model_optim_rng.pt")["model"])
            wanted = tensors_of(layout_of.model_chunks(weights, layout, stage, rank)["model"])
            assert actual.keys() == wanted.keys(), sorted(actual.keys() ^ wanted.keys())
            for name, tensor in wanted.items():
                assert_same_bits(actual[name], tensor, name)
    prompt = [rng.randrange(128) for _ in range(9)]
    expected = yuan.reference_logits(weights, prompt).numpy()
    actual, _ = run(folder / "to-hf", prompt, folder, new_tokens=1)
    # Rotary angles may be rounded to BF16 as Yuan was trained; at few positions that is small.
    error = abs(actual - expected).max() / (expected.max() - expected.min())
    assert error < 2e-2, error


def check_leftovers(rng, folder):
    """Yuan's merged files keep the head's copy at one stage, args may be absent, the iteration may
    be named as the source, and files without a version are of version 0."""
    weights = yuan.random_weights(rng, layers=2, heads=4, head_dim=4, vocab=64)
    layout = Layout(tp=2, vocab=64, tied_copy_at_pp1=True, stage_in_name=True)
    layout_of.write(weights, folder / "merged", layout)
    llmctl("reshard", folder / "merged", folder / "a", "--tp", 4, "--pp", 2)
    target = replace(layout, tp=4, pp=2, tied_copy_at_pp1=False, stage_in_name=None)
    check_directory(folder / "a", weights, target, first_args(folder / "merged", layout))
    llmctl("reshard", folder / "merged" / layout.step_dir(), folder / "b", "--tp", 4, "--pp", 2)
    assert files_of(folder / "a") == files_of(folder / "b")
    # Two steps: the tracker chooses; the other can be named.
    old = replace(layout, iteration=7, tied_copy_at_pp1=False)
    other = yuan.random_weights(rng, layers=2, heads=4, head_dim=4, vocab=64)
    layout_of.write(other, folder / "older", old)
    shutil.move(folder / "older" / old.step_dir(), folder / "merged" / old.step_dir())
    assert digest(folder / "merged") == digest(folder / "a")
    assert digest(folder / "merged" / old.step_dir()) != digest(folder / "a")


def check_keep_rng(rng, folder):
    case = random_case(rng, "gpt2")
    a = random_layout(rng, case, like=Layout(with_rng=True))
    layout_of.write(case.weights, folder / "a", a)
    llmctl("reshard", folder / "a", folder / "b", "--tp", 2, "--pp", 2, "--keep-rng")
    weights, wanted = resharded(case.weights, a, Layout(tp=2, pp=2))
    check_directory(folder / "b", weights, wanted, first_args(folder / "a", a), keep_rng=True)
    before = megatron_forward.load(folder / "a" / a.step_dir() / a.stage_dir(0, 0)
                                   / "model_optim_rng.pt")["rng_state"][0]
    after = megatron_forward.load(folder / "b" / wanted.step_dir() / wanted.stage_dir(1, 1)
                                  / "model_optim_rng.pt")["rng_state"][0]
    assert before["random_rng_state"] == after["random_rng_state"]
    assert (before["np_rng_state"][1] == after["np_rng_state"][1]).all()
    assert torch.equal(before["torch_rng_state"], after["torch_rng_state"])


def check_sequence_parallel(rng, folder):
    """Needs a tensor-parallel size: kept where there is one, off where there is none."""
    case = random_case(rng, "gpt2", rows=64)
    a = Layout(style="core-te", tp=2, vocab=64, sequence_parallel=True)
    layout_of.write(case.weights, folder / "a", a)
    for tp in (1, 4):
        llmctl("reshard", folder / "a", folder / f"b{tp}", "--tp", tp, "--pp", 1)
        check_directory(folder / f"b{tp}", case.weights, replace(a, tp=tp),
                        first_args(folder / "a", a))


class _Shell:
    def __reduce__(self):
        return os.system, ("touch /tmp/llmctl-was-here",)


def _faults():
    """(name, what is done to a good tp 2 x pp 2 tree, exit code of a reshard)."""
    def folder(root, name):
        return step_of(root) / name

    def missing_stage(root):
        shutil.rmtree(folder(root, "mp_rank_01_001"))

    def missing_file(root):
        (folder(root, "mp_rank_00_001") / "model_optim_rng.pt").unlink()

    def mixed_iterations(root):
        change(root, "mp_rank_01_000", lambda c: c.update(iteration=9))

    def replica(root):
        def edit(content):
            content["model"]["language_model"]["encoder"]["layers.1.input_layernorm.weight"][3] += 1
        change(root, "mp_rank_01_001", edit)

    def head_copy(root):
        def edit(content):
            content["model"]["word_embeddings_for_head"]["weight"][5, 2] += 1
        change(root, "mp_rank_00_001", edit)

    def stale_tracker(root):
        (root / "latest_checkpointed_iteration.txt").write_text("20")

    def broken_tracker(root):
        (root / "latest_checkpointed_iteration.txt").write_text("ten")

    def gap(root):
        for stage in ("000", "001"):
            folder(root, f"mp_rank_01_{stage}").rename(folder(root, f"mp_rank_03_{stage}"))

    def duplicate(root):
        shutil.copytree(folder(root, "mp_rank_01_001"), folder(root, "mp_rank_1_1"))

    def absurd(root):
        folder(root, "mp_rank_01_001").rename(folder(root, "mp_rank_01_99999999999999999999"))

    def huge(root):
        folder(root, "mp_rank_01_001").rename(folder(root, "mp_rank_01_2000000000"))

    def hostile(root):
        change(root, "mp_rank_00_000", lambda c: setattr(c["args"], "seed", _Shell()))

    def truncated(root):
        path = folder(root, "mp_rank_01_000") / "model_optim_rng.pt"
        path.write_bytes(path.read_bytes()[:-100])

    def garbage(root):
        (folder(root, "mp_rank_01_000") / "model_optim_rng.pt").write_bytes(b"not a checkpoint" * 99)

    def version(root):
        change(root, "mp_rank_00_000", lambda c: c.update(checkpoint_version=4.0))

    def versions_differ(root):
        change(root, "mp_rank_01_001", lambda c: c.pop("checkpoint_version"))

    def layer_gone(root):
        def edit(content):
            encoder = content["model"]["language_model"]["encoder"]
            for name in [n for n in encoder if n.startswith("layers.0.")]:
                del encoder[name]
        change(root, "mp_rank_01_001", edit)

    def tensor_gone(root):
        def edit(content):
            del content["model"]["language_model"]["encoder"]["layers.1.mlp.dense_4h_to_h.weight"]
        change(root, "mp_rank_01_001", edit)

    def stranger(root):
        def edit(content):
            encoder = content["model"]["language_model"]["encoder"]
            encoder["layers.0.mlp.adapter.weight"] = torch.ones(4)
        change(root, "mp_rank_01_001", edit)

    def other_shape(root):
        def edit(content):
            encoder = content["model"]["language_model"]["encoder"]
            name = "layers.0.self_attention.dense.weight"
            encoder[name] = encoder[name][:, :-1].clone()
        change(root, "mp_rank_01_001", edit)

    def other_dtype(root):
        def edit(content):
            encoder = content["model"]["language_model"]["encoder"]
            name = "layers.0.self_attention.dense.weight"
            encoder[name] = encoder[name].to(torch.float64)
        change(root, "mp_rank_01_001", edit)

    def lying_args(root):
        change(root, "mp_rank_00_000", lambda c: setattr(c["args"], "hidden_size", 1234))

    def no_step(root):
        shutil.rmtree(step_of(root))

    def unknown_version(root):
        for path in step_of(root).iterdir():
            change(root, path.name, lambda c: c.update(checkpoint_version=4.0))

    def all_lie(root):
        for path in step_of(root).iterdir():
            change(root, path.name, lambda c: setattr(c["args"], "hidden_size", 1234))

    def dangling_link(root):
        shutil.rmtree(folder(root, "mp_rank_01_001"))
        folder(root, "mp_rank_01_001").symlink_to(root / "nowhere")

    def circular_link(root):
        shutil.rmtree(folder(root, "mp_rank_01_001"))
        folder(root, "mp_rank_01_001").symlink_to(folder(root, "mp_rank_01_001"))

    def link_to_a_device(root):
        path = folder(root, "mp_rank_01_001") / "model_optim_rng.pt"
        path.unlink()
        path.symlink_to("/dev/zero")

    def link_to_another_rank(root):
        path = folder(root, "mp_rank_01_001")
        shutil.rmtree(path)
        path.symlink_to(folder(root, "mp_rank_00_001"))

    def not_a_dict(root):
        def edit(content):
            content["model"]["language_model"]["encoder"] = [1, 2, 3]
        change(root, "mp_rank_01_001", edit)
    return [value for value in locals().values() if value is not folder]


def check_refusals(rng, folder):
    """Every fault is refused with one line and exit code 3, and nothing is written."""
    case = random_case(rng, "gpt2", rows=64)
    case.weights.geometry = replace(case.weights.geometry, tied=True)
    case.weights.tensors.pop("head", None)
    layout_of.write(case.weights, folder / "good", Layout(tp=2, pp=2, vocab=64))
    for fault in _faults():
        name = fault.__name__
        with about(name):
            bad = folder / "bad" / name
            shutil.copytree(folder / "good", bad)
            fault(bad)
            llmctl("reshard", bad, folder / "out", "--tp", 1, "--pp", 1, expect=3)
            left = sorted(p.name for p in folder.iterdir())
            assert left == ["bad", "good"], left
    assert not os.path.exists("/tmp/llmctl-was-here")
    heads = case.weights.geometry.heads
    for flags in (("--tp", 3, "--pp", 1), ("--tp", 2 * heads, "--pp", 1), ("--tp", 1, "--pp", 5),
                  ("--tp", 1, "--pp", 3), ("--tp", 1, "--pp", 2, "--pipeline-blocks", "1,2"),
                  ("--tp", 1, "--pp", 2, "--pipeline-blocks", "5,-1"),
                  ("--tp", 1, "--pp", 2, "--pipeline-blocks", "2,two"),
                  ("--tp", 1, "--pp", 3, "--pipeline-blocks", "2,2"),
                  ("--tp", 0, "--pp", 1), ("--tp", 1, "--pp", 2, "--virtual-pp", 3)):
        with about(flags):
            llmctl("reshard", folder / "good", folder / "out", *flags, expect=2)
            assert not (folder / "out").exists(), "something was written"


def main():
    checks = Checks()
    for number in range(14):
        checks.run(f"reshard {number}", check_reshard(number))
    checks.run("padding", check_padding)
    for family in ("gpt2", "llama", "bloom"):
        checks.run(f"hf {family}", check_hf(family))
    checks.run("yuan scripts", check_yuan)
    checks.run("yuan hf", check_yuan_hf)
    checks.run("leftovers", check_leftovers)
    checks.run("keep rng", check_keep_rng)
    checks.run("sequence parallel", check_sequence_parallel)
    checks.run("refusals", check_refusals)
    checks.finish()


if __name__ == "__main__":
    main()
