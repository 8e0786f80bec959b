"""Logits computed from the tensors of Megatron files as each tensor-parallel rank of Megatron's modules
computes with them, summed where Megatron reduces: the check of megatron_layout.py by mathematics.

One sequence, FP32, no dropout. Megatron's own formulas; nothing is shared with megatron_layout.py.
"""
import math
import re

import torch
import torch.nn.functional as F


def load(path):
    return torch.load(path, map_location="cpu", weights_only=False)


def _flat(node, prefix=""):
    for key, value in node.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, dict):
            yield from _flat(value, name)


# Any spelling -> the word used below.
_RENAME = [
    (r"^language_model\.", ""), (r"^(encoder|transformer|decoder)\.", ""),
    (r"\.attention\.", ".self_attention."), (r"layernorm(?!_)", "norm"),
    (r"self_attention\.linear_qkv\.layer_norm_", "input_norm."),
    (r"mlp\.linear_fc1\.layer_norm_", "post_attention_norm."), (r"pre_mlp_norm", "post_attention_norm"),
    (r"self_attention\.query_key_value", "qkv"), (r"self_attention\.linear_qkv", "qkv"),
    (r"self_attention\.(dense|linear_proj)", "o"), (r"mlp\.(dense_h_to_4h|linear_fc1)", "fc1"),
    (r"mlp\.(dense_4h_to_h|linear_fc2)", "fc2"),
]


def _plain(name):
    for pattern, text in _RENAME:
        name = re.sub(pattern, text, name)
    return name


class Checkpoint:
    """All ranks of one step directory; `stages[T]` lists the chunks of rank T in execution order."""

    def __init__(self, step):
        files = {}
        for path in sorted(step.glob("mp_rank_*/model_optim_rng.pt")):
            match = re.fullmatch(r"mp_rank_(\d+)(?:_(\d+))?", path.parent.name)
            files[int(match[1]), int(match[2] or 0)] = load(path)
        self.tp = 1 + max(t for t, _ in files)
        self.pp = 1 + max(p for _, p in files)
        first = files[0, 0]
        self.args, self.version = first["args"], first.get("checkpoint_version", 0)
        keys = sorted((k for k in first if re.fullmatch(r"model\d*", k)), key=lambda k: int(k[5:] or 0))
        # Virtual pipelines run chunk 0 on every stage, then chunk 1, ...
        self.stages = [[{_plain(n): w for n, w in _flat(files[t, p][key])}
                        for key in keys for p in range(self.pp)] for t in range(self.tp)]


def _norm(args, x, tensors, name):
    weight = tensors[f"{name}.weight"]
    rms = getattr(args, "norm_dtype", None) or getattr(args, "normalization", "LayerNorm")
    if rms == "RMSNorm":
        eps = 1e-6 if hasattr(args, "norm_dtype") else args.layernorm_epsilon
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
    return F.layer_norm(x, (x.shape[-1],), weight, tensors[f"{name}.bias"], args.layernorm_epsilon)


def _rotary(x, theta):
    """x (seq, heads, d), the whole width rotated in halves."""
    d = x.shape[-1]
    angle = torch.outer(torch.arange(x.shape[0]).float(), theta ** (-torch.arange(0, d, 2) / d))
    cos, sin = (f(torch.cat([angle, angle], -1))[:, None] for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def _alibi_slopes(heads):
    """From the ALiBi paper's code, as Megatron-DeepSpeed copies it."""
    power = 2 ** math.floor(math.log2(heads))
    start = 2 ** (-2 ** -(math.log2(power) - 3))
    slopes = [start ** (i + 1) for i in range(power)]
    if power < heads:
        start = 2 ** (-2 ** -(math.log2(2 * power) - 3))
        slopes += [start ** (i + 1) for i in range(0, 2 * (heads - power), 2)]
    return torch.tensor(slopes)


def _split_qkv(mixed, version, local_heads, local_groups, d):
    """mixed (seq, rows of this rank) -> q (seq, local_heads, d), k, v (seq, local_groups, d)."""
    seq = mixed.shape[0]
    if version == 0:
        q, k, v = mixed.chunk(3, -1)
        return (x.view(seq, local_heads, d) for x in (q, k, v))
    if version == 1.0:
        mixed = mixed.view(seq, local_heads, d, 3)
        return mixed[..., 0], mixed[..., 1], mixed[..., 2]
    group = local_heads // local_groups
    mixed = mixed.view(seq, local_groups, (group + 2) * d)
    q, k, v = torch.split(mixed, [group * d, d, d], -1)
    return q.reshape(seq, local_heads, d), k, v


def _attend(q, k, v, slopes):
    """Causal attention of one rank's heads; slopes (heads,) of this rank or None."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("shd,thd->hst", q, k) / math.sqrt(q.shape[-1])
    seq = q.shape[0]
    if slopes is not None:
        scores = scores + slopes[:, None, None] * torch.arange(seq).float()
    scores = scores.masked_fill(torch.ones(seq, seq, dtype=torch.bool).triu(1), float("-inf"))
    return torch.einsum("hst,thd->shd", scores.softmax(-1), v).reshape(seq, -1)


def _filter(args, n, w):
    """Localized filtering: two convolutions over (previous, current), each with zero history."""
    def conv(x, name):
        weight, bias = w[f"{name}.weight"][..., 0], w[f"{name}.bias"]
        padded = F.pad(x.T[None], (1, 0))
        return F.conv1d(padded, weight, bias)[0].T
    gate = "self_attention.lf_gate"
    return _norm(args, conv(conv(n, f"{gate}.conv1"), f"{gate}.conv2") + n, w,
                 f"{gate}.output_norm")


def _layer(checkpoint, x, shards):
    """One transformer layer; shards[T] are rank T's tensors."""
    args, tp = checkpoint.args, checkpoint.tp
    heads, d = args.num_attention_heads // tp, args.kv_channels
    groups = (args.num_query_groups // tp if getattr(args, "group_query_attention", False) else heads)
    position = str(getattr(args, "position_embedding_type", ""))
    n = [_norm(args, x, w, "input_norm") for w in shards]
    partial = []
    for rank, w in enumerate(shards):
        if "self_attention.get_value.weight" in w:
            v = (n[rank] @ w["self_attention.get_value.weight"].T).view(-1, heads, d)
            mixed = _filter(args, n[rank], w) @ w["self_attention.get_query_key.weight"].T
            q, k = mixed.view(-1, heads, 2 * d).chunk(2, -1)
        else:
            mixed = F.linear(n[rank], w["qkv.weight"], w.get("qkv.bias"))
            q, k, v = _split_qkv(mixed, checkpoint.version, heads, groups, d)
        if position == "rope":
            theta = float(getattr(args, "rotary_base", 10000))
            q, k = _rotary(q, theta), _rotary(k, theta)
        slopes = None
        if position.endswith("alibi"):
            slopes = _alibi_slopes(heads * tp)[rank * heads:(rank + 1) * heads]
        partial.append(_attend(q, k, v, slopes) @ w["o.weight"].T)
    # Row-parallel: summed over ranks, the bias added once.
    x = x + sum(partial) + shards[0].get("o.bias", 0)
    n = [_norm(args, x, w, "post_attention_norm") for w in shards]
    partial = []
    for rank, w in enumerate(shards):
        y = F.linear(n[rank], w["fc1.weight"], w.get("fc1.bias"))
        if getattr(args, "swiglu", False):
            gate, up = y.chunk(2, -1)
            y = F.silu(gate) * up
        else:
            tanh = args.bias_gelu_fusion or args.openai_gelu
            y = F.gelu(y, approximate="tanh" if tanh else "none")
        partial.append(y @ w["fc2.weight"].T)
    return x + sum(partial) + shards[0].get("fc2.bias", 0)


@torch.no_grad()
def logits(step, ids):
    """(len(ids), padded vocabulary) from the files below `step`."""
    checkpoint = Checkpoint(step)
    args, stages = checkpoint.args, checkpoint.stages
    first = [chunks[0] for chunks in stages]
    ids = torch.tensor(ids)
    x = 0
    for rank, w in enumerate(first):
        # Vocabulary-parallel: ids outside this rank's range give zeros.
        table = w["embedding.word_embeddings.weight"]
        local = ids - rank * table.shape[0]
        outside = (local < 0) | (local >= table.shape[0])
        x = x + table[local.masked_fill(outside, 0)].masked_fill(outside[:, None], 0.0)
    w = first[0]
    if "embedding.word_embeddings.norm.weight" in w:
        x = _norm(args, x, w, "embedding.word_embeddings.norm")
    if "embedding.position_embeddings.weight" in w:
        x = x + w["embedding.position_embeddings.weight"][:len(ids)]
    for chunks in zip(*stages):
        count = 1 + max((int(m[1]) for k in chunks[0] if (m := re.match(r"layers\.(\d+)\.", k))),
                        default=-1)
        for layer in range(count):
            prefix = f"layers.{layer}."
            x = _layer(checkpoint, x, [{k[len(prefix):]: v for k, v in w.items()
                                        if k.startswith(prefix)} for w in chunks])
    last = [chunks[-1] for chunks in stages]
    x = _norm(args, x, last[0], "final_norm")
    head = next((name for name in ("output_layer.weight", "word_embeddings_for_head.weight")
                 if name in last[0]), "embedding.word_embeddings.weight")
    return torch.cat([x @ w[head].T for w in last], -1)
