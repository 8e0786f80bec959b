"""`llmctl synth` held against its definition written down again, and transformers on what it makes."""
import numpy as np
import torch
import transformers

from families import assert_same_bits, read_safetensors
from harness import Checks, about, llmctl
from megatron_cases import files_of

MASK = (1 << 64) - 1
GOLDEN, MIX = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93


def fold(a, b):
    product = a * b
    return (product & MASK) ^ (product >> 64)


def values(seed, key, first, count):
    """Elements [first, first + count) of the canonical tensor `key`, F32."""
    state = fold((seed ^ GOLDEN) & MASK, MIX)
    for byte in key.encode():
        state = fold(state ^ byte, GOLDEN)
    out = []
    for index in range(first, first + count):
        bits = fold(fold(index // 2 ^ state, GOLDEN), MIX) >> (32 * (index % 2)) & 0xFFFFFFFF
        total = (bits & 1023) + (bits >> 10 & 1023) + (bits >> 20 & 1023)
        out.append(2 * (4 * total + (bits >> 30)) - 12279)
    numbers = np.array(out, dtype=np.float32)
    if key.rsplit(".", 1)[-1] in ("norm1", "norm2", "final_norm", "embed_norm", "lf_norm"):
        return np.float32(1) + numbers * np.float32(2.0 ** -18)
    return numbers * (np.float32(0.02) / np.float32(4096))


def check_values(rng, folder):
    seed = rng.randrange(1 << 62)
    llmctl("synth", folder / "m", "--family", "llama", "--seed", seed, "--to", "hf", "--dtype", "fp32",
           *(x for s in ("num_hidden_layers=2", "hidden_size=24", "num_attention_heads=6",
                         "num_key_value_heads=2", "head_dim=4", "intermediate_size=40",
                         "vocab_size=31") for x in ("--set", s)))
    tensors = read_safetensors(folder / "m")
    for name, key, shape in (
            ("model.embed_tokens.weight", "embed", (31, 24)), ("lm_head.weight", "head", (31, 24)),
            ("model.norm.weight", "final_norm", (24,)),
            ("model.layers.1.self_attn.q_proj.weight", "layers.1.q", (24, 24)),
            ("model.layers.0.self_attn.o_proj.weight", "layers.0.o", (24, 24)),
            ("model.layers.1.mlp.down_proj.weight", "layers.1.down", (24, 40)),
            ("model.layers.0.input_layernorm.weight", "layers.0.norm1", (24,))):
        wanted = torch.from_numpy(values(seed, key, 0, int(np.prod(shape)))).reshape(shape)
        assert_same_bits(tensors[name], wanted, name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "m")
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


TINY = ("num_hidden_layers=2", "hidden_size=32", "num_attention_heads=4", "vocab_size=60")
MORE = {"gptj-6b": ("rotary_dim=4", "head_dim=8"), "gpt-neox-20b": ("rotary_dim=2", "head_dim=8"),
        "llama-70b": ("num_key_value_heads=2", "head_dim=8"), "qwen2-7b": (
            "num_key_value_heads=2", "head_dim=8"), "mistral-7b": (
            "num_key_value_heads=2", "head_dim=8"), "opt-350m": ("word_embed_proj_dim=16",)}


def check_geometry(geometry):
    """transformers reads what is made of the geometry, with no tensor missing or left over."""
    def check(rng, folder):
        settings = [x for s in TINY + MORE.get(geometry, ()) for x in ("--set", s)]
        llmctl("synth", folder / "m", "--geometry", geometry, "--to", "hf", *settings)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder / "m", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        assert not info["mismatched_keys"], info
        assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    return check


LAYOUTS = [("--tp", 1, "--pp", 1), ("--tp", 2, "--pp", 1), ("--tp", 4, "--pp", 2),
           ("--tp", 1, "--pp", 3, "--pipeline-blocks", "1,2,1"), ("--tp", 2, "--pp", 2, "--virtual-pp", 2),
           ("--tp", 1, "--pp", 4), ("--tp", 2, "--pp", 2, "--megatron-names", "core")]


def check_megatron(geometry):
    """Made in one layout and resharded to another is made in the other, byte for byte."""
    def check(rng, folder):
        sizes = ("num_hidden_layers=4", "hidden_size=32", "num_attention_heads=4", "vocab_size=512")
        settings = [x for s in sizes + MORE.get(geometry, ()) for x in ("--set", s)]
        seed = ("--seed", rng.randrange(1000))
        layouts = [x for x in LAYOUTS if (geometry != "llama-70b" or x[1] <= 2) and (
            geometry != "yuan-102b" or "--virtual-pp" not in x and "--megatron-names" not in x)]
        a, b = rng.sample(layouts, 2)
        names = ("--megatron-names", "core") if "core" in a + b else ()
        with about(f"{a} -> {b}"):
            for name, layout in (("a", a), ("b", b)):
                plain = tuple(x for x in layout if x not in ("--megatron-names", "core"))
                llmctl("synth", folder / name, "--geometry", geometry, "--to", "megatron", *settings,
                       *seed, *plain, *names)
            plain = tuple(x for x in b if x not in ("--megatron-names", "core"))
            llmctl("reshard", folder / "a", folder / "c", *plain)
            assert files_of(folder / "b") == files_of(folder / "c")
            llmctl("synth", folder / "hf", "--geometry", geometry, "--to", "hf", *settings, *seed)
            assert len({llmctl("digest", folder / n).split()[0] for n in ("a", "b", "hf")}) == 1
    return check


def check_sparse(rng, folder):
    """A 13 GB model takes no room, and the library reads its headers."""
    llmctl("synth", folder / "m", "--geometry", "llama-7b", "--to", "hf", "--sparse")
    used = sum(path.stat().st_blocks * 512 for path in (folder / "m").iterdir())
    assert used < 2 << 20, used
    first = sorted((folder / "m").glob("*.safetensors"))[0]
    with about(first.name):
        assert first.stat().st_size > 4 << 30
        from safetensors import safe_open
        with safe_open(first, "pt") as file:
            name = next(n for n in file.keys() if n.endswith("q_proj.weight"))
            assert file.get_slice(name).get_shape() == [4096, 4096]


def main():
    checks = Checks()
    checks.run("values", check_values)
    for geometry in ("gpt2", "opt-125m", "opt-350m", "bloom-560m", "gptj-6b", "gpt-neox-20b",
                     "llama-7b", "llama-70b", "mistral-7b", "qwen2-7b"):
        checks.run(f"geometry {geometry}", check_geometry(geometry))
    for geometry in ("gpt2", "llama-70b", "bloom-560m", "yuan-102b"):
        for repeat in range(2):
            checks.run(f"megatron {geometry} {repeat}", check_megatron(geometry))
    checks.run("sparse", check_sparse)
    checks.finish()


if __name__ == "__main__":
    main()
