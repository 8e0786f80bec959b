"""Quantised exports against numpy and transformers: integers, scales, errors and logits."""
import json

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from harness import GOLDEN, SOURCE, Checks, llmctl, llmctl_json

SAMPLE = SOURCE / "samples" / "llama-stories"
F32 = np.float32


def half_away(x):
    return np.sign(x) * np.floor(np.abs(x).astype(np.float64) + 0.5)


def quantize(weight, bits, group):
    """Paddle's weight_quantize on the CPU: (integers, scales), of rows [out, in]."""
    bound = F32(127 if bits == 8 else 7)
    w = weight.astype(F32)
    blocks = w.reshape(w.shape[0], -1, group) if group else w[:, None, :]
    scale = np.abs(blocks).max(-1) / bound
    scale = scale.astype(np.float16).astype(F32) if group else scale
    scale[scale == 0] = 1
    q = np.clip(half_away(blocks / scale[..., None]), -bound, bound)
    return q.astype(np.int8).reshape(w.shape), scale


def unpack(stored, rows, columns, bits, group):
    """(integers, scales) of a matrix in the layout that docs/quantisation.md describes."""
    panels, blocks, size = stored.shape
    width = group or (columns + 7) // 8 * 8
    lanes = stored[:, :, :width * 2 * bits]
    scales = np.ascontiguousarray(stored[:, :, width * 2 * bits:])
    scales = scales.view(np.float16 if group else F32).astype(F32)
    if bits == 8:
        q = lanes.view(np.int8).reshape(panels, blocks, width // 2, 16, 2)
    else:
        words = np.ascontiguousarray(lanes).view(np.uint16).reshape(panels, blocks, width // 8, 16, 2)
        nibbles = [(words >> 4 * j & 15).astype(np.int8) - 8 for j in range(4)]
        q = np.stack(nibbles, axis=3).transpose(0, 1, 2, 4, 3, 5)  # lines, rows, pairs, columns
        q = q.reshape(panels, blocks, width // 8, 16, 8)
    q = q.transpose(0, 3, 1, 2, 4).reshape(panels * 16, blocks * width)
    return q[:rows, :columns], scales.transpose(0, 2, 1).reshape(panels * 16, blocks)[:rows]


def matrices(source, layer):
    name = f"model.layers.{layer}."
    row = lambda *parts: np.concatenate([source[f"{name}{p}.weight"].float().numpy() for p in parts])
    return {"qkv": row("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "o": row("self_attn.o_proj"), "gate_up": row("mlp.gate_proj", "mlp.up_proj"),
            "down": row("mlp.down_proj")}


def flags(bits, group):
    return ("--quant", f"int{bits}", "--group-size", group)


def check_integers(folder, source, layers, bits, group):
    out = folder / "out"
    llmctl("export", source, out, *flags(bits, group))
    stored = load_file(out / "rank-00000.safetensors")
    weights = load_file(source / "model.safetensors")
    report = json.loads((out / "quantization-errors.json").read_text())
    errors = {t["name"]: t for t in report["tensors"]}
    squares = np.zeros(2)
    for layer in range(layers):
        for name, w in matrices(weights, layer).items():
            got, scales = unpack(stored[f"layers.{layer}.{name}"].numpy(), *w.shape, bits, group)
            want, want_scales = quantize(w, bits, group)
            assert np.array_equal(scales, want_scales), f"scales of {name}"
            assert np.array_equal(got, want), f"integers of {name}"
            off = w.astype(np.float64) - dequantize(got, scales, group)
            squares += (off**2).sum(), (w.astype(np.float64)**2).sum()
            found = errors[f"layers.{layer}.{name}"]
            assert np.isclose(found["relative_rms_error"],
                              np.sqrt((off**2).sum() / (w.astype(np.float64)**2).sum()), rtol=1e-5)
            assert np.isclose(found["max_error"], np.abs(off).max(), rtol=1e-4)
    assert np.isclose(report["relative_rms_error"], np.sqrt(squares[0] / squares[1]), rtol=1e-5)


def dequantize(q, scales, group):
    columns = q.shape[1]
    return q.astype(F32) * np.repeat(scales, group or columns, axis=1)[:, :columns]


@torch.no_grad()
def check_logits(rng, folder, source, bits, group, tolerance):
    """transformers with the weights that the integers stand for: what differs are activations of 16 bits."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in f".{name}":
            q, scales = quantize(module.weight.numpy(), bits, group)
            module.weight.copy_(torch.from_numpy(dequantize(q, scales, group)))
    vocab = model.config.vocab_size
    ids = [rng.randrange(vocab) for _ in range(21)]
    want = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    logits = folder / "logits.npy"
    for where in (source, folder / "export"):
        given = flags(bits, group) if where == source else ()
        if where != source:
            llmctl("export", source, where, *flags(bits, group), "--tp", 2)
        for grid in ((), ("--tp", 2), ("--pp", 2)):
            llmctl("run", where, *given, *grid, "--token-ids", ",".join(map(str, ids)), "-n", 0,
                   "--logits-file", logits)
            got = np.load(logits)
            logits.unlink()
            off, spread = np.abs(got - want).max(), want.max() - want.min()
            assert off <= tolerance * spread, f"{where}: largest error {off} of a range of {spread}"


def check_greedy(folder, bits, group):
    """The ids from the source, from an export, and from the weights written out as F32."""
    out, plain = folder / "out", folder / "plain"
    llmctl("export", SAMPLE, out, *flags(bits, group))
    llmctl("convert", out, plain, "--to", "hf")
    ask = ("--prompt", "Once upon a time", "-n", 48)
    ids = llmctl_json("run", SAMPLE, *flags(bits, group), *ask)["ids"]
    assert llmctl_json("run", out, *ask)["ids"] == ids
    assert llmctl_json("run", out, "--tp", 4, *ask)["ids"] == ids
    tokenizer = transformers.AutoTokenizer.from_pretrained(SAMPLE)
    model = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    want = model.generate(**prompt, max_new_tokens=48, do_sample=False)[0, prompt.input_ids.shape[1]:]
    assert ids == want.tolist()


checks = Checks()
for bits in (8, 4):
    for group in (0, 32):
        case = f"int{bits} " + (f"in groups of {group}" if group else "by rows")
        checks.run(f"integers and scales are Paddle's: {case}",
                   lambda rng, folder, a=(bits, group): check_integers(folder, SAMPLE, 8, *a))
        checks.run(f"greedy ids are transformers': {case}",
                   lambda rng, folder, a=(bits, group): check_greedy(folder, *a))
        checks.run(f"logits are transformers': {case} llama-stories",
                   lambda rng, folder, a=(bits, group): check_logits(rng, folder, SAMPLE, *a, 1e-4))
    # Random weights, larger than trained ones, magnify what is rounded.
    for family in ("llama", "gpt_neox", "opt", "qwen2"):
        if not (GOLDEN / "families" / family / "config.json").exists():
            raise FileNotFoundError(family)
        checks.run(f"logits are transformers': int{bits} by rows {family}",
                   lambda rng, folder, a=(GOLDEN / "families" / family, bits, 0):
                   check_logits(rng, folder, *a, 1e-3))
checks.finish()
