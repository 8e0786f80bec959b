"""Yuan 2.0: random weights, the Hugging Face form of the releases, and what the two scripts that
resplit its checkpoints do, as formulas on dicts of tensors (docs/formats/megatron.md)."""
import json
import math
from collections import OrderedDict

import torch
from safetensors.torch import save_file

from megatron_layout import Geometry, Weights

BLOCKS_102B = [2] * 10 + [3] * 20 + [2] * 2


def random_weights(rng, layers=3, heads=8, head_dim=4, ffn=None, vocab=120, dtype=torch.float32,
                   scale=0.2):
    h = heads * head_dim
    f = ffn or 4 * h
    g = Geometry("yuan", layers, h, heads, heads, head_dim, f, vocab, 64, "rope", "RMSNorm", True,
                 False, False, True, 1e-6, dtype=dtype)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))

    def normal(*shape):
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    def norm():
        return (1 + torch.randn(h, generator=generator) * 0.1).to(dtype)
    t = {"embed": normal(vocab, h), "final.weight": norm()}
    for i in range(layers):
        t |= {f"{i}.norm1.weight": norm(), f"{i}.norm2.weight": norm(),
              f"{i}.q": normal(h, h), f"{i}.k": normal(h, h), f"{i}.v": normal(h, h),
              f"{i}.o": normal(h, h), f"{i}.gate": normal(f, h), f"{i}.up": normal(f, h),
              f"{i}.down": normal(h, f), f"{i}.conv1.weight": normal(h // 2, h, 2, 1),
              f"{i}.conv1.bias": normal(h // 2), f"{i}.conv2.weight": normal(h, h // 2, 2, 1),
              f"{i}.conv2.bias": normal(h), f"{i}.filter_norm.weight": norm()}
    return Weights(g, t, padding_seed=rng.randrange(1000))


def hugging_face(weights, vocab):
    """Tensors by their names in the releases; tables of `vocab` rows."""
    g, t = weights.geometry, weights.tensors
    out = {"model.embed_tokens.weight": weights.table("embed", vocab),
           "lm_head.weight": weights.table("embed", vocab).clone(),
           "model.norm.weight": t["final.weight"]}
    for i in range(g.layers):
        p = f"model.layers.{i}"
        # The model views the rows of (q_proj, k_proj) as one (q, k) pair for each head.
        pairs = torch.cat([t[f"{i}.{n}"].reshape(g.heads, 1, g.head_dim, g.hidden) for n in "qk"], 1)
        rows = pairs.reshape(2 * g.hidden, g.hidden)
        out |= {
            f"{p}.self_attn.q_proj.weight": rows[:g.hidden],
            f"{p}.self_attn.k_proj.weight": rows[g.hidden:],
            f"{p}.self_attn.v_proj.weight": t[f"{i}.v"], f"{p}.self_attn.o_proj.weight": t[f"{i}.o"],
            # silu is applied to up_proj: the names are exchanged against LLaMA's.
            f"{p}.mlp.up_proj.weight": t[f"{i}.gate"], f"{p}.mlp.gate_proj.weight": t[f"{i}.up"],
            f"{p}.mlp.down_proj.weight": t[f"{i}.down"],
            f"{p}.input_layernorm.weight": t[f"{i}.norm1.weight"],
            f"{p}.post_attention_layernorm.weight": t[f"{i}.norm2.weight"],
            f"{p}.self_attn.lf_gate.output_layernorm.weight": t[f"{i}.filter_norm.weight"],
        }
        for conv in ("conv1", "conv2"):
            for suffix in ("weight", "bias"):
                out[f"{p}.self_attn.lf_gate.{conv}.{suffix}"] = t[f"{i}.{conv}.{suffix}"]
    return {name: tensor.contiguous() for name, tensor in out.items()}


def hugging_face_config(weights, vocab):
    g = weights.geometry
    return {
        "architectures": ["YuanForCausalLM"], "model_type": "yuan", "vocab_size": vocab,
        "auto_map": {"AutoConfig": "configuration_yuan.YuanConfig",
                     "AutoModelForCausalLM": "yuan_hf_model.YuanForCausalLM"},
        "hidden_size": g.hidden, "intermediate_size": g.ffn, "num_hidden_layers": g.layers,
        "num_attention_heads": g.heads, "hidden_act": "silu", "model_max_length": g.max_positions,
        "max_position_embeddings": g.max_positions, "rms_norm_eps": 1e-6, "pad_token_id": 77185,
        "bos_token_id": 77185, "eos_token_id": 77185, "eod_token": 77185, "sep_token": 77187,
        "causal_mask": True, "use_flash_attention": False, "reset_position_ids": False,
        "reset_attention_mask": False, "use_loss_mask": False, "initializer_range": 0.02,
        "tie_word_embeddings": True, "use_cache": True, "rotary_emb_base": 10000,
        "torch_dtype": str(g.dtype).removeprefix("torch."), "transformers_version": "4.30.0.dev0",
    }


def write_hugging_face(weights, folder, vocab=None, container="bin", inv_freq=True, head=True):
    """The directory of a release; `inv_freq` keeps the rotary buffers that old ones hold."""
    vocab = vocab or weights.geometry.vocab
    tensors = hugging_face(weights, vocab)
    if not head:
        del tensors["lm_head.weight"]
    if inv_freq:
        d = weights.geometry.head_dim
        for i in range(weights.geometry.layers):
            tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = (
                10000.0 ** (-torch.arange(0, d, 2) / d))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(hugging_face_config(weights, vocab), indent=2))
    if container == "bin":
        torch.save(OrderedDict(tensors), folder / "pytorch_model.bin")
    else:
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors",
                  metadata={"format": "pt"})
    return tensors


# The scripts, on the `model` dicts of rank files.

# Partition dimension of what a rank holds a part of; all else is copied whole.
_DIMENSION = {"word_embeddings.weight": 0, "get_value.weight": 0, "get_query_key.weight": 0,
              "dense.weight": 1, "dense_h_to_4h.weight": 0, "dense_4h_to_h.weight": 1}


def split_tp(model, parts):
    """split_tp_partitions.py: the `model` of one rank file as `parts` ranks hold it."""
    def cut(name, tensor, part):
        dimension = next((d for end, d in _DIMENSION.items() if f".{name}".endswith("." + end)), None)
        if dimension is None:
            return tensor
        if "dense_h_to_4h" in name:
            halves = torch.split(tensor, tensor.shape[0] // 2, dim=0)
            return torch.cat([torch.split(half, half.shape[0] // parts, dim=0)[part] for half in halves])
        return torch.split(tensor, tensor.shape[dimension] // parts, dim=dimension)[part]

    def walk(node, part, prefix=""):
        if isinstance(node, dict):
            # The copy of the table on the last stage is a vocabulary-parallel module too.
            return {k: walk(v, part, f"{prefix}.{k}".replace("word_embeddings_for_head",
                                                             "word_embeddings")) for k, v in node.items()}
        return cut(prefix, node, part)
    return [walk(model, part) for part in range(parts)]


def merge_pp(models, blocks):
    """merge_pp_partitions.py towards one stage: the stages of one tensor rank, first to last. The
    last stage's dict is the frame, so its copy of the table stays."""
    frame = models[-1]
    encoder, offset = {}, 0
    for stage, model in enumerate(models):
        for key, tensor in model["language_model"]["encoder"].items():
            if key.startswith("layers."):
                _, local, rest = key.split(".", 2)
                encoder[f"layers.{int(local) + offset}.{rest}"] = tensor
            else:
                assert stage == len(models) - 1, key
                encoder[key] = tensor
        offset += blocks[stage]
    out = {"language_model": {"encoder": encoder,
                              "embedding": models[0]["language_model"]["embedding"]}}
    if "word_embeddings_for_head" in frame:
        out["word_embeddings_for_head"] = frame["word_embeddings_for_head"]
    return out


@torch.no_grad()
def reference_logits(weights, ids):
    """Straight from the whole tensors by the formulas of the model, with exact rotary angles."""
    g, t = weights.geometry, {n: w.float() for n, w in weights.tensors.items()}
    a, d, n = g.heads, g.head_dim, len(ids)

    def rms(x, w):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * w
    angle = torch.arange(n)[:, None] * 10000.0 ** (-2 * torch.arange(d // 2) / d)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]

    def rotate(x):
        # The vector is (real parts, imaginary parts).
        z = torch.complex(x[..., :d // 2], x[..., d // 2:]) * turn
        return torch.cat([z.real, z.imag], -1)
    x = t["embed"][torch.tensor(ids)]
    for i in range(g.layers):
        m = rms(x, t[f"{i}.norm1.weight"])

        def conv(y, name):
            w, b = t[f"{i}.{name}.weight"][..., 0], t[f"{i}.{name}.bias"]
            before = torch.cat([torch.zeros_like(y[:1]), y[:-1]])
            return before @ w[:, :, 0].T + y @ w[:, :, 1].T + b
        u = rms(conv(conv(m, "conv1"), "conv2") + m, t[f"{i}.filter_norm.weight"])
        q, k = (rotate((u @ t[f"{i}.{c}"].T).view(n, a, d)) for c in "qk")
        v = (m @ t[f"{i}.v"].T).view(n, a, d)
        scores = torch.einsum("shd,thd->hst", q, k) / math.sqrt(d)
        scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -1e30)
        y = torch.einsum("hst,thd->shd", scores.softmax(-1), v).reshape(n, -1)
        x = x + y @ t[f"{i}.o"].T
        m = rms(x, t[f"{i}.norm2.weight"])
        gate, up = m @ t[f"{i}.gate"].T, m @ t[f"{i}.up"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ t[f"{i}.down"].T
    return rms(x, t["final.weight"]) @ t["embed"].T
