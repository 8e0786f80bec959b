"""Yuan 2.0 in torch, written from its formulas: what the goldens of `yuan*` are made by.

transformers has no such model. Everything is a plain function of the stored tensors in F32, over
whole sequences of one length: nothing of padding or caches can hide in it.
"""
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file

EPS = 1e-6


def shapes(c):
    """Stored name -> shape."""
    h, f, groups = c["hidden_size"], c["intermediate_size"], c.get("lf_conv2d_group", 1)
    result = {"model.embed_tokens.weight": (c["vocab_size"], h)}
    for i in range(c["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": (h,),
            "self_attn.v_proj.weight": (h, h),
            "self_attn.q_proj.weight": (h, h),
            "self_attn.k_proj.weight": (h, h),
            "self_attn.o_proj.weight": (h, h),
            "self_attn.lf_gate.conv1.weight": (h // 2, h // groups, 2, 1),
            "self_attn.lf_gate.conv1.bias": (h // 2,),
            "self_attn.lf_gate.conv2.weight": (h, h // 2 // groups, 2, 1),
            "self_attn.lf_gate.conv2.bias": (h,),
            "self_attn.lf_gate.output_layernorm.weight": (h,),
            "post_attention_layernorm.weight": (h,),
            "mlp.up_proj.weight": (f, h),
            "mlp.gate_proj.weight": (f, h),
            "mlp.down_proj.weight": (h, f),
        }
        result |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    result["model.norm.weight"] = (h,)
    if not c["tie_word_embeddings"]:
        result["lm_head.weight"] = (c["vocab_size"], h)
    return result


def rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS) * weight


def after_zero(x):
    """Row s is row s - 1 of x (..., tokens, channels); row 0 is zeros."""
    return torch.cat([torch.zeros_like(x[..., :1, :]), x[..., :-1, :]], -2)


def convolve(weight, bias, groups, x):
    """Over (previous, current); weight (out, in / groups, 2, 1), block-diagonal over the groups."""
    parts = zip(weight.chunk(groups), after_zero(x).chunk(groups, -1), x.chunk(groups, -1))
    return torch.cat([previous @ w[:, :, 0, 0].T + current @ w[:, :, 1, 0].T
                      for w, previous, current in parts], -1) + bias


def localized_filter(t, prefix, groups, n):
    """u of the normed inputs n. What stands before the first y1 is zero, not conv1 of zeros."""
    y1 = convolve(t[prefix + "conv1.weight"], t[prefix + "conv1.bias"], groups, n)
    y2 = convolve(t[prefix + "conv2.weight"], t[prefix + "conv2.bias"], groups, y1)
    return rms_norm(y2 + n, t[prefix + "output_layernorm.weight"])


def bf16(x):
    return x.to(torch.bfloat16).to(torch.float32)


def angles(num_tokens, d, in_bf16):
    """(cos, sin), each (tokens, d / 2)."""
    r = bf16 if in_bf16 else (lambda x: x)
    inverse = r(1.0 / 10000.0 ** (torch.arange(0, d, 2).float() / d))
    angle = r(r(torch.arange(num_tokens).float())[:, None] * inverse[None, :])
    return r(angle.cos()), r(angle.sin())


def rotate(x, cos, sin, in_bf16):
    """x (..., tokens, d)."""
    r = bf16 if in_bf16 else (lambda x: x)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([r(r(first * cos) + r(-second * sin)), r(r(second * cos) + r(first * sin))], -1)


def attention(t, prefix, c, n):
    tokens, h = n.shape[-2:]
    heads = c["num_attention_heads"]
    d = h // heads
    in_bf16 = c.get("rope_precision") == "megatron_bf16"
    u = localized_filter(t, prefix + "lf_gate.", c.get("lf_conv2d_group", 1), n)
    # The two projections are one tensor cut in the middle: 2d rows a head, query above key.
    query_key = torch.cat([t[prefix + "q_proj.weight"], t[prefix + "k_proj.weight"]])
    cos, sin = angles(tokens, d, in_bf16)
    mask = torch.full((tokens, tokens), float("-inf")).triu(1)
    outputs = []
    for i in range(heads):
        q = rotate(u @ query_key[2 * i * d:(2 * i + 1) * d].T, cos, sin, in_bf16)
        k = rotate(u @ query_key[(2 * i + 1) * d:(2 * i + 2) * d].T, cos, sin, in_bf16)
        v = n @ t[prefix + "v_proj.weight"][i * d:(i + 1) * d].T
        outputs.append(torch.softmax(q @ k.mT / d**0.5 + mask, -1) @ v)
    return torch.cat(outputs, -1) @ t[prefix + "o_proj.weight"].T


def mlp(t, prefix, m):
    gated = torch.nn.functional.silu(m @ t[prefix + "up_proj.weight"].T)
    return (gated * (m @ t[prefix + "gate_proj.weight"].T)) @ t[prefix + "down_proj.weight"].T


def logits(t, c, ids):
    """(sequences, tokens, vocab) of ids (sequences, tokens)."""
    embedding = t["model.embed_tokens.weight"]
    x = embedding[ids]
    for i in range(c["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        x = x + attention(t, prefix + "self_attn.", c, rms_norm(x, t[prefix + "input_layernorm.weight"]))
        x = x + mlp(t, prefix + "mlp.", rms_norm(x, t[prefix + "post_attention_layernorm.weight"]))
    return rms_norm(x, t["model.norm.weight"]) @ t.get("lm_head.weight", embedding).T


class Yuan:
    """As much of a transformers model as the generator and the interop tests use."""

    def __init__(self, config, tensors=None):
        self.json = dict(config)
        self.config = SimpleNamespace(**config)
        self.tensors = tensors or {name: torch.empty(shape) for name, shape in shapes(config).items()}

    @classmethod
    def from_pretrained(cls, folder):
        folder = Path(folder)
        return cls(json.loads((folder / "config.json").read_text()),
                   load_file(folder / "model.safetensors"))

    def named_parameters(self):
        return self.tensors.items()

    def state_dict(self):
        return dict(self.tensors)

    def save_pretrained(self, folder):
        save_file(self.tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})

    def __call__(self, ids, use_cache=False):
        return SimpleNamespace(logits=logits(self.tensors, self.json, ids))
