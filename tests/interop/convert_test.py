"""Conversions of fresh random models of every family, held against torch and plain formulas."""
import json
import shutil

import torch
import transformers
from safetensors.torch import load_file, save_file

import ft_layout
from families import (CONTAINERS, FAMILIES, assert_same_bits, build, read_safetensors, save,
                      tp_sizes)
from harness import Checks, about, llmctl, llmctl_json

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def compare_ft(folder, config, stored, tp, dtype):
    """Every .bin file of `folder` against its formula, bit for bit."""
    wanted = ft_layout.expected(config, stored, tp, dtype)
    found = {path.name for path in folder.glob("*.bin")}
    assert found == set(wanted), f"files: {sorted(found ^ set(wanted))}"
    product = config.model_type == "opt" and config.word_embed_proj_dim != config.hidden_size
    for name, tensor in wanted.items():
        tensor = tensor.contiguous()
        data = (folder / name).read_bytes()
        assert len(data) == tensor.numel() * tensor.element_size(), f"{name}: {len(data)} bytes"
        actual = torch.frombuffer(bytearray(data), dtype=dtype).reshape(tensor.shape)
        if product and name in ("model.wte.bin", "model.lm_head.weight.bin"):
            # Products of two matrices: the order of summation is free.
            tolerance = 1e-5 if dtype == torch.float32 else 1e-2
            torch.testing.assert_close(actual, tensor, rtol=tolerance, atol=tolerance)
        else:
            assert_same_bits(actual, tensor, name)


def to_ft(source, out, tp, *extra):
    llmctl("convert", source, out, "--to", "ft", "--tp", tp, *extra)
    return out / f"{tp}-gpu"


def check_ft(family):
    """HF -> FT at every tp, each file by its formula; FT -> FT; digest and diff see no change."""
    def check(rng, folder):
        config = FAMILIES[family](rng)
        container = rng.choice(CONTAINERS)
        source = folder / "hf"
        stored = save(build(config), source, container, classic=rng.random() < 0.5)
        sizes = tp_sizes(config)
        with about(f"{container}, {config.to_diff_dict()}"):
            for tp in sizes:
                for dtype in ("fp32", rng.choice(["fp16", "bf16"])):
                    with about(f"tp={tp} {dtype}"):
                        ft = to_ft(source, folder / f"ft-{dtype}", tp, "--dtype", dtype)
                        compare_ft(ft, config, stored, tp, DTYPES[dtype])
            first, last = (folder / "ft-fp32" / f"{tp}-gpu" for tp in (sizes[0], sizes[-1]))
            with about(f"FT {sizes[-1]} -> FT {sizes[0]}"):
                again = to_ft(last, folder / "again", sizes[0])
                for path in first.glob("*.bin"):
                    assert path.read_bytes() == (again / path.name).read_bytes(), path.name
            if family != "opt_350m":
                with about("digest and diff"):
                    llmctl("diff", source, last)
                    assert digest(source) == digest(last)
    return check


def digest(path):
    return llmctl("digest", path).split()[0]


def check_round_trip(family):
    """HF -> FT -> HF: the same tensors bit for bit, and a directory that transformers reads."""
    def check(rng, folder):
        config = FAMILIES[family](rng)
        model = build(config)
        source = folder / "hf"
        stored = save(model, source, classic=rng.random() < 0.5)
        ids = torch.tensor([[rng.randrange(3, config.vocab_size) for _ in range(12)]])
        before = model(ids).logits
        for tp in tp_sizes(config):
            with about(f"tp={tp} {config.to_diff_dict()}"):
                ft = to_ft(source, folder / "ft", tp)
                back = folder / f"back-{tp}"
                llmctl("convert", ft, back, "--to", "hf")
                tensors = read_safetensors(back)
                assert set(tensors) == set(stored), sorted(set(tensors) ^ set(stored))
                for name, tensor in stored.items():
                    if name.endswith("embed_positions.weight"):
                        # FasterTransformer drops OPT's two leading rows, which nothing reads.
                        assert_same_bits(tensors[name][2:], tensor[2:], name)
                    else:
                        assert_same_bits(tensors[name], tensor, name)
                reread = transformers.AutoModelForCausalLM.from_pretrained(
                    back, dtype=torch.float32, attn_implementation="eager").eval()
                assert torch.equal(reread(ids).logits, before), "logits after the round trip"
    return check


def check_hf(family):
    """HF -> HF in another dtype and shard size: torch's own casts, and transformers reads it."""
    def check(rng, folder):
        config = FAMILIES[family](rng)
        model = build(config)
        source = folder / "hf"
        container = rng.choice(CONTAINERS)
        stored = save(model, source, container, classic=rng.random() < 0.5)
        with about(f"{container} {config.to_diff_dict()}"):
            for dtype, torch_dtype in DTYPES.items():
                out = folder / dtype
                llmctl("convert", source, out, "--to", "hf", "--dtype", dtype,
                       "--max-shard-size", "20KB")
                tensors = read_safetensors(out)
                assert set(tensors) == set(stored), sorted(set(tensors) ^ set(stored))
                for name, tensor in stored.items():
                    assert_same_bits(tensors[name], tensor.to(torch_dtype), f"{dtype} {name}")
                reread = transformers.AutoModelForCausalLM.from_pretrained(out)
                assert reread.dtype == torch_dtype, f"config says {reread.dtype}"
    return check


def check_values(rng, folder):
    """Casts of the values that go wrong: ties, subnormals, the largest, infinities, NaN."""
    config = FAMILIES["llama"](rng)
    model = build(config)
    source = folder / "hf"
    save(model, source)
    path = source / "model.safetensors"
    tensors = load_file(path)
    embed = tensors["model.embed_tokens.weight"].reshape(-1)
    awkward = torch.tensor([0.0, -0.0, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 2**-24,
                            2**-25, 1.5 * 2**-25, 2**-26, 65504.0, 65519.0, 6.1e-5, 5.96e-8, 1e-40,
                            -2049.0, 3.0e-39])
    embed[:len(awkward)] = awkward
    bits = torch.randint(-2**31, 2**31, (len(embed) - len(awkward) - 8,), dtype=torch.int64)
    anything = bits.to(torch.int32).view(torch.float32)
    anything = torch.where(anything.abs() < 6e4, anything, torch.ones(()))  # also drops NaN and Inf
    embed[len(awkward):len(awkward) + len(anything)] = anything
    save_file(tensors, path, metadata={"format": "pt"})
    for dtype, torch_dtype in DTYPES.items():
        out = folder / dtype
        llmctl("convert", source, out, "--to", "hf", "--dtype", dtype)
        for name, tensor in load_file(path).items():
            assert_same_bits(read_safetensors(out)[name], tensor.to(torch_dtype), f"{dtype} {name}")


def check_overflow(rng, folder):
    """A value beyond F16: Inf and a note by default, refused or clamped when asked."""
    config = FAMILIES["gpt2"](rng)
    source = folder / "hf"
    save(build(config), source)
    path = source / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.wte.weight"][0, :2] = torch.tensor([70000.0, -1e30])
    save_file(tensors, path, metadata={"format": "pt"})
    common = ("--to", "hf", "--dtype", "fp16")
    llmctl("convert", source, folder / "inf", *common)
    row = read_safetensors(folder / "inf")["transformer.wte.weight"][0, :2]
    assert row.tolist() == [float("inf"), float("-inf")], row
    llmctl("convert", source, folder / "clamp", *common, "--on-overflow", "clamp")
    row = read_safetensors(folder / "clamp")["transformer.wte.weight"][0, :2]
    assert row.tolist() == [65504.0, -65504.0], row
    llmctl("convert", source, folder / "error", *common, "--on-overflow", "error", expect=3)
    assert not (folder / "error").exists()


def check_diff(rng, folder):
    """One changed element is found and named; dtype alone is no difference of layout."""
    family = rng.choice(["bloom", "llama", "gpt2", "gpt_neox"])
    config = FAMILIES[family](rng)
    model = build(config)
    stored = save(model, folder / "a")
    shutil.copytree(folder / "a", folder / "b")
    name = rng.choice(sorted(n for n in stored if stored[n].dim() == 2))
    changed = {n: t.clone() for n, t in stored.items()}
    changed[name].reshape(-1)[rng.randrange(changed[name].numel())] += 1.0
    save_file(changed, folder / "b" / "model.safetensors", metadata={"format": "pt"})
    llmctl("diff", folder / "a", folder / "a")
    out = llmctl("diff", folder / "a", folder / "b", expect=1)
    assert out.strip(), "diff says nothing"
    assert digest(folder / "a") != digest(folder / "b")
    ft = to_ft(folder / "b", folder / "ft", tp_sizes(config)[-1])
    llmctl("diff", folder / "b", ft)
    llmctl("diff", folder / "a", ft, expect=1)


def check_inspect(family):
    """inspect says what the config says, before and after a conversion."""
    def check(rng, folder):
        config = FAMILIES[family](rng)
        save(build(config), folder / "hf", rng.choice(CONTAINERS))
        llmctl("inspect", folder / "hf", "--tensors")
        ft = to_ft(folder / "hf", folder / "ft", tp_sizes(config)[-1])
        for path in (folder / "hf", ft):
            text = json.dumps(llmctl_json("inspect", path))
            for value in (config.vocab_size, config.hidden_size, config.num_attention_heads):
                assert str(value) in text, f"{value} is not in {text[:500]}"
    return check


def check_refusals(rng, folder):
    """What does not fit is refused before anything is written."""
    config = transformers.BloomConfig(vocab_size=51, hidden_size=142, n_layer=1, n_head=71,
                                      bos_token_id=1, eos_token_id=2)
    stored = save(build(config), folder / "hf")
    for tp in (2, 4, 142):
        llmctl("convert", folder / "hf", folder / "bad", "--to", "ft", "--tp", tp, expect=2)
        assert not (folder / "bad").exists()
    for tp in (1, 71):
        ft = to_ft(folder / "hf", folder / "ft", tp)
        compare_ft(ft, config, stored, tp, torch.float32)
        victim = rng.choice(sorted(ft.glob("*.bin")))
        data = victim.read_bytes()
        for broken in (data[:-1], data + b"\0", None):
            victim.unlink(missing_ok=True)
            if broken is not None:
                victim.write_bytes(broken)
            llmctl("convert", ft, folder / "bad", "--to", "hf", expect=3)
            assert not (folder / "bad").exists()


def main():
    checks = Checks()
    for family in FAMILIES:
        checks.run(f"ft {family}", check_ft(family))
        if family != "opt_350m":
            checks.run(f"round trip {family}", check_round_trip(family))
        checks.run(f"hf {family}", check_hf(family))
    for family in ("gpt2", "opt", "bloom", "gptj", "gpt_neox", "llama", "qwen2"):
        checks.run(f"inspect {family}", check_inspect(family))
    checks.run("cast values", check_values)
    checks.run("overflow", check_overflow)
    checks.run("diff", check_diff)
    checks.run("refusals", check_refusals)
    checks.finish()


if __name__ == "__main__":
    main()
