"""Checkpoints as Megatron-LM, Megatron-DeepSpeed and Yuan 2.0 themselves would save them, written
with torch.save from whole tensors by plain slicing; the definitions are those of docs/formats/megatron.md.

A `Weights` holds a model as whole, un-partitioned tensors in one fixed order of rows (heads one after
the other; gate and up apart); a `Layout` says how a checkpoint cuts and names them; `write` makes the
directory. Nothing here knows llmctl.
"""
import io
from collections import OrderedDict
from dataclasses import dataclass, replace

import torch

import megatron_args


@dataclass(frozen=True)
class Geometry:
    family: str  # gpt2, llama, bloom, yuan
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int  # true size
    max_positions: int
    position: str  # learned, rope, alibi
    norm: str  # LayerNorm, RMSNorm
    gated: bool
    linear_bias: bool
    qkv_bias: bool
    tied: bool
    eps: float
    rope_theta: float = 10000.0
    dtype: torch.dtype = torch.float32


@dataclass
class Weights:
    """tensors: `embed`, `pos`, `embed_norm.*`, `head`, `final.*`, and per layer i `i.norm1.*`,
    `i.q`, `i.k`, `i.v`, `i.o`, `i.norm2.*`, `i.gate`, `i.up`, `i.down` ([out, in]), biases with
    `.bias` behind the name, Yuan's `i.conv1.*`, `i.conv2.*`, `i.filter_norm.weight`."""
    geometry: Geometry
    tensors: dict
    padding_seed: int = 0  # None: rows of padding are zeros

    def table(self, name, rows):
        """`embed` or `head` cut or lengthened to `rows`. Padding rows are random, as training
        leaves them; row r is the same whatever the length."""
        table = self.tensors[name]
        missing = rows - table.shape[0]
        if missing <= 0:
            return table[:rows]
        if self.padding_seed is None:
            more = table.new_zeros(missing, table.shape[1])
        else:
            seed = self.padding_seed + (name == "head")
            more = torch.stack([
                torch.randn(table.shape[1], generator=torch.Generator().manual_seed(
                    seed * 1000003 + table.shape[0] + row)) for row in range(missing)])
        return torch.cat([table, more.to(table.dtype)])



def from_gpt2(model):
    c, state = model.config, model.state_dict()
    h = c.n_embd
    geometry = Geometry(
        "gpt2", c.n_layer, h, c.n_head, c.n_head, h // c.n_head, c.n_inner or 4 * h, c.vocab_size,
        c.n_positions, "learned", "LayerNorm", False, True, True, c.tie_word_embeddings,
        c.layer_norm_epsilon, dtype=model.dtype)
    t = {"embed": state["transformer.wte.weight"], "pos": state["transformer.wpe.weight"]}
    if not geometry.tied:
        t["head"] = state["lm_head.weight"]
    for suffix in ("weight", "bias"):
        t[f"final.{suffix}"] = state[f"transformer.ln_f.{suffix}"]
    for i in range(c.n_layer):
        p = f"transformer.h.{i}"

        def put(source, target):
            # GPT-2's Conv1D stores [in, out].
            t[f"{i}.{target}"] = state[f"{p}.{source}.weight"].T.contiguous()
            t[f"{i}.{target}.bias"] = state[f"{p}.{source}.bias"]
        for suffix in ("weight", "bias"):
            t[f"{i}.norm1.{suffix}"] = state[f"{p}.ln_1.{suffix}"]
            t[f"{i}.norm2.{suffix}"] = state[f"{p}.ln_2.{suffix}"]
        for n, (w, b) in zip("qkv", zip(state[f"{p}.attn.c_attn.weight"].T.chunk(3),
                                        state[f"{p}.attn.c_attn.bias"].chunk(3))):
            t[f"{i}.{n}"], t[f"{i}.{n}.bias"] = w.contiguous(), b.clone()
        put("attn.c_proj", "o")
        put("mlp.c_fc", "up")
        put("mlp.c_proj", "down")
    return Weights(geometry, t)


def from_llama(model):
    c, state = model.config, model.state_dict()
    d = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    geometry = Geometry(
        "llama", c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.num_key_value_heads,
        d, c.intermediate_size, c.vocab_size, c.max_position_embeddings, "rope", "RMSNorm", True,
        False, False, c.tie_word_embeddings, c.rms_norm_eps,
        c.rope_parameters["rope_theta"], dtype=model.dtype)
    t = {"embed": state["model.embed_tokens.weight"], "final.weight": state["model.norm.weight"]}
    if not geometry.tied:
        t["head"] = state["lm_head.weight"]
    for i in range(geometry.layers):
        p = f"model.layers.{i}"
        for source, target in (("input_layernorm.weight", "norm1.weight"),
                               ("post_attention_layernorm.weight", "norm2.weight"),
                               ("self_attn.q_proj.weight", "q"), ("self_attn.k_proj.weight", "k"),
                               ("self_attn.v_proj.weight", "v"), ("self_attn.o_proj.weight", "o"),
                               ("mlp.gate_proj.weight", "gate"), ("mlp.up_proj.weight", "up"),
                               ("mlp.down_proj.weight", "down")):
            t[f"{i}.{target}"] = state[f"{p}.{source}"]
    return Weights(geometry, t)


def from_bloom(model):
    c, state = model.config, model.state_dict()
    h, a = c.hidden_size, c.n_head
    geometry = Geometry(
        "bloom", c.n_layer, h, a, a, h // a, 4 * h, c.vocab_size, 64, "alibi", "LayerNorm", False,
        True, True, c.tie_word_embeddings, c.layer_norm_epsilon, dtype=model.dtype)
    t = {"embed": state["transformer.word_embeddings.weight"]}
    if not geometry.tied:
        t["head"] = state["lm_head.weight"]
    for suffix in ("weight", "bias"):
        t[f"embed_norm.{suffix}"] = state[f"transformer.word_embeddings_layernorm.{suffix}"]
        t[f"final.{suffix}"] = state[f"transformer.ln_f.{suffix}"]
    for i in range(c.n_layer):
        p = f"transformer.h.{i}"
        for suffix in ("weight", "bias"):
            t[f"{i}.norm1.{suffix}"] = state[f"{p}.input_layernorm.{suffix}"]
            t[f"{i}.norm2.{suffix}"] = state[f"{p}.post_attention_layernorm.{suffix}"]
            tail = "" if suffix == "weight" else ".bias"
            fused = state[f"{p}.self_attention.query_key_value.{suffix}"]
            fused = fused.reshape(a, 3, h // a, *fused.shape[1:])
            for s, n in enumerate("qkv"):
                t[f"{i}.{n}{tail}"] = fused[:, s].reshape(h, *fused.shape[3:]).contiguous()
            t[f"{i}.o{tail}"] = state[f"{p}.self_attention.dense.{suffix}"]
            t[f"{i}.up{tail}"] = state[f"{p}.mlp.dense_h_to_4h.{suffix}"]
            t[f"{i}.down{tail}"] = state[f"{p}.mlp.dense_4h_to_h.{suffix}"]
    return Weights(geometry, t)


FROM_HF = dict(gpt2=from_gpt2, llama=from_llama, bloom=from_bloom)


@dataclass(frozen=True)
class Layout:
    """style: legacy, core-local, core-te, deepspeed. spelling (legacy): v1 (`transformer`,
    `.attention.`), layernorm, norm. version: None (key absent, order of 0), 0, 1.0, 2.0, 3.0."""
    style: str = "legacy"
    spelling: str = "layernorm"
    version: object = 3.0
    tp: int = 1
    pp: int = 1
    vp: int = 1
    blocks: tuple = ()  # layers of each stage; empty: even
    vocab: int = 0  # rows of the table; 0 becomes the padded size
    divisible_by: int = 128
    iteration: int = 10
    release: bool = False
    stage_in_name: bool = None  # None: when pp > 1
    with_args: bool = True
    with_rng: bool = True
    with_optimizer: bool = False
    sequence_parallel: bool = False
    tied_copy_at_pp1: bool = False  # as Yuan's merge leaves it

    @property
    def core(self):
        return self.style.startswith("core")

    @property
    def order(self):
        return self.version or 0

    def stage_dir(self, tp_rank, stage):
        with_stage = self.pp > 1 if self.stage_in_name is None else self.stage_in_name
        return f"mp_rank_{tp_rank:02d}" + (f"_{stage:03d}" if with_stage else "")

    def step_dir(self):
        return "release" if self.release else f"iter_{self.iteration:07d}"


def padded_vocab(true_size, divisible_by, tp):
    unit = divisible_by * tp
    return -(-true_size // unit) * unit


def complete(weights, layout):
    """The layout with its vocabulary filled in. Yuan pads to 128 whatever the tp."""
    if layout.vocab:
        return layout
    tp = 1 if weights.geometry.family == "yuan" else layout.tp
    return replace(layout, vocab=padded_vocab(weights.geometry.vocab, layout.divisible_by, tp))


def chunk_layers(geometry, layout, stage, chunk):
    """Global numbers of the layers of one (virtual) stage."""
    if layout.blocks:
        assert layout.vp == 1 and sum(layout.blocks) == geometry.layers
        first = sum(layout.blocks[:stage])
        return list(range(first, first + layout.blocks[stage]))
    per_chunk, rest = divmod(geometry.layers, layout.pp * layout.vp)
    assert rest == 0, "layers do not divide"
    first = chunk * (geometry.layers // layout.vp) + stage * per_chunk
    return list(range(first, first + per_chunk))


def _rows(tensor, layout, rank):
    n, rest = divmod(tensor.shape[0], layout.tp)
    assert rest == 0, "rows do not divide"
    return tensor[rank * n:(rank + 1) * n]


def _columns(tensor, layout, rank):
    n, rest = divmod(tensor.shape[1], layout.tp)
    assert rest == 0, "columns do not divide"
    return tensor[:, rank * n:(rank + 1) * n]


def fused_qkv(weights, layout, layer, rank, suffix=""):
    """One rank's query_key_value: whole groups where tp <= groups, else an even cut of the rows."""
    g = weights.geometry
    q, k, v = (weights.tensors[f"{layer}.{n}{suffix}"] for n in "qkv")
    if layout.order >= 2.0 or g.kv_heads != g.heads:
        tail = q.shape[1:]
        groups = torch.cat([q.reshape(g.kv_heads, -1, g.head_dim, *tail),
                            k.reshape(g.kv_heads, 1, g.head_dim, *tail),
                            v.reshape(g.kv_heads, 1, g.head_dim, *tail)], dim=1)
        return _rows(groups.reshape(-1, *tail), layout, rank)
    mine = [_rows(x, layout, rank) for x in (q, k, v)]
    stacked = torch.stack(mine)  # (3, local heads * head_dim, ...)
    if layout.order == 0:
        return stacked.reshape(-1, *q.shape[1:])
    return stacked.movedim(0, 1).reshape(-1, *q.shape[1:])  # 1.0: the three side by side


def layer_tensors(weights, layout, layer, rank):
    """[(canonical kind, tensor)] of one layer on one rank, in the order Megatron's module has."""
    g, t = weights.geometry, weights.tensors
    out = []

    def add(kind, tensor):
        out.append((kind, tensor.contiguous()))

    def norm(kind):
        for suffix in ("weight", "bias"):
            if f"{layer}.{kind}.{suffix}" in t:
                add(f"{kind}.{suffix}", t[f"{layer}.{kind}.{suffix}"])
    norm("norm1")
    if g.family == "yuan":
        add("value.weight", _rows(t[f"{layer}.v"], layout, rank))
        q, k = (t[f"{layer}.{n}"].reshape(g.heads, 1, g.head_dim, g.hidden) for n in "qk")
        pairs = torch.cat([q, k], dim=1).reshape(2 * g.hidden, g.hidden)
        add("query_key.weight", _rows(pairs, layout, rank))
        for kind in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias",
                     "filter_norm.weight"):
            add(kind, t[f"{layer}.{kind}"])
    else:
        add("qkv.weight", fused_qkv(weights, layout, layer, rank))
        if f"{layer}.q.bias" in t:
            add("qkv.bias", fused_qkv(weights, layout, layer, rank, ".bias"))
    add("o.weight", _columns(t[f"{layer}.o"], layout, rank))
    if f"{layer}.o.bias" in t:
        add("o.bias", t[f"{layer}.o.bias"])
    norm("norm2")
    for suffix in ("", ".bias"):
        if f"{layer}.up{suffix}" not in t:
            continue
        up = _rows(t[f"{layer}.up{suffix}"], layout, rank)
        if g.gated:
            up = torch.cat([_rows(t[f"{layer}.gate{suffix}"], layout, rank), up])
        add("fc1.weight" if not suffix else "fc1.bias", up)
    add("fc2.weight", _columns(t[f"{layer}.down"], layout, rank))
    if f"{layer}.down.bias" in t:
        add("fc2.bias", t[f"{layer}.down.bias"])
    return out


_LEGACY = {
    "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
    "qkv": "self_attention.query_key_value", "value": "self_attention.get_value",
    "query_key": "self_attention.get_query_key", "conv1": "self_attention.lf_gate.conv1",
    "conv2": "self_attention.lf_gate.conv2", "filter_norm": "self_attention.lf_gate.output_layernorm",
    "o": "self_attention.dense", "fc1": "mlp.dense_h_to_4h", "fc2": "mlp.dense_4h_to_h",
}
_CORE_LOCAL = {
    "norm1": "input_layernorm", "norm2": "pre_mlp_layernorm", "qkv": "self_attention.linear_qkv",
    "o": "self_attention.linear_proj", "fc1": "mlp.linear_fc1", "fc2": "mlp.linear_fc2",
}


def legacy_name(kind, spelling):
    module, suffix = kind.split(".")
    name = _LEGACY[module]
    if spelling == "v1":
        name = name.replace("self_attention.", "attention.")
    elif spelling == "norm" and module != "filter_norm":
        name = name.replace("layernorm", "norm")
    return f"{name}.{suffix}"


def core_name(kind, style):
    module, suffix = kind.split(".")
    if style == "core-te" and module in ("norm1", "norm2"):
        owner = "self_attention.linear_qkv" if module == "norm1" else "mlp.linear_fc1"
        return f"{owner}.layer_norm_{suffix}"
    return f"{_CORE_LOCAL[module]}.{suffix}"


def _module_dict(pairs):
    """As Module.state_dict() gives it: an OrderedDict that carries `_metadata`."""
    out = OrderedDict(pairs)
    out._metadata = OrderedDict([("", {"version": 1}), ("layers", {"version": 1})])
    return out


def _extra_state(layer, name):
    """What TransformerEngine leaves beside a module: nothing, or a stream of FP8 scales."""
    if layer % 2 == 0:
        return None
    stream = io.BytesIO(b"fp8 state of " + name.encode())
    stream.seek(0)
    return stream


def _legacy_chunk(weights, layout, stage, chunk, rank):
    g, t = weights.geometry, weights.tensors
    first = stage == 0 and chunk == 0
    last = stage == layout.pp - 1 and chunk == layout.vp - 1
    language_model = {}
    if first:
        words = [("weight", _rows(weights.table("embed", layout.vocab), layout, rank))]
        words += [(f"norm.{s}", t[f"embed_norm.{s}"]) for s in ("weight", "bias")
                  if f"embed_norm.{s}" in t]
        embedding = {"word_embeddings": _module_dict(words)}
        if "pos" in t:
            embedding["position_embeddings"] = _module_dict([("weight", t["pos"])])
        language_model["embedding"] = embedding
    pairs = []
    for local, layer in enumerate(chunk_layers(g, layout, stage, chunk)):
        for kind, tensor in layer_tensors(weights, layout, layer, rank):
            pairs.append((f"layers.{local}.{legacy_name(kind, layout.spelling)}", tensor))
    if last:
        final = "final_norm" if layout.spelling == "norm" else "final_layernorm"
        pairs += [(f"{final}.{s}", t[f"final.{s}"]) for s in ("weight", "bias") if f"final.{s}" in t]
    language_model["transformer" if layout.spelling == "v1" else "encoder"] = _module_dict(pairs)
    if last and not g.tied:
        language_model["output_layer"] = _module_dict(
            [("weight", _rows(weights.table("head", layout.vocab), layout, rank))])
    out = {"language_model": language_model}
    if last and g.tied and (layout.pp > 1 or layout.tied_copy_at_pp1):
        out["word_embeddings_for_head"] = _module_dict(
            [("weight", _rows(weights.table("embed", layout.vocab), layout, rank))])
    return out


def _core_chunk(weights, layout, stage, chunk, rank):
    g, t = weights.geometry, weights.tensors
    first = stage == 0 and chunk == 0
    last = stage == layout.pp - 1 and chunk == layout.vp - 1
    pairs = []
    if first:
        table = weights.table("embed", layout.vocab)
        pairs.append(("embedding.word_embeddings.weight", _rows(table, layout, rank)))
        if "pos" in t:
            pairs.append(("embedding.position_embeddings.weight", t["pos"]))
    for local, layer in enumerate(chunk_layers(g, layout, stage, chunk)):
        prefix = f"decoder.layers.{local}."
        if layout.style == "core-te":
            pairs.append((prefix + "self_attention.core_attention._extra_state", None))
        for kind, tensor in layer_tensors(weights, layout, layer, rank):
            pairs.append((prefix + core_name(kind, layout.style), tensor))
        for module in ("self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1",
                       "mlp.linear_fc2"):
            state = _extra_state(layer, module) if layout.style == "core-te" else None
            pairs.append((f"{prefix}{module}._extra_state", state))
    if last:
        pairs += [(f"decoder.final_layernorm.{s}", t[f"final.{s}"]) for s in ("weight", "bias")
                  if f"final.{s}" in t]
        if layout.style == "core-te":
            pairs.append(("decoder.final_layernorm._extra_state", None))
        if not g.tied or layout.pp > 1:
            name = "embed" if g.tied else "head"
            table = weights.table(name, layout.vocab)
            pairs.append(("output_layer.weight", _rows(table, layout, rank)))
            pairs.append(("output_layer._extra_state", None))
    return _module_dict(pairs)


def model_chunks(weights, layout, stage, rank):
    """The `model` (or `model0`, `model1`, ...) entries of one rank's file."""
    make = _core_chunk if layout.core else _legacy_chunk
    chunks = [make(weights, layout, stage, c, rank) for c in range(layout.vp)]
    if layout.vp == 1:
        return {"model": chunks[0]}
    return {f"model{c}": chunk for c, chunk in enumerate(chunks)}


def _optimizer(chunks):
    """Mixed precision Adam, not distributed: moments by number, FP32 masters by group."""
    def walk(node):
        if isinstance(node, torch.Tensor):
            yield node
        elif isinstance(node, dict):
            for value in node.values():
                yield from walk(value)
    parameters = list(walk(chunks))
    groups = [[p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]]
    numbers, state, start = [], {}, 0
    for group in groups:
        numbers.append(list(range(start, start + len(group))))
        for n, p in zip(numbers[-1], group):
            state[n] = {"exp_avg": torch.zeros(p.shape), "exp_avg_sq": torch.ones(p.shape)}
        start += len(group)
    return {
        "optimizer": {"state": state, "param_groups": [
            {"wd_mult": 1.0 - i, "lr_mult": 1.0, "lr": 9e-5, "weight_decay": 0.1 * (1 - i),
             "betas": (0.9, 0.95), "eps": 1e-8, "step": 10, "params": n}
            for i, n in enumerate(numbers)]},
        "grad_scaler": {"scale": torch.tensor([65536.0]), "growth_tracker": 0,
                        "hysteresis_tracker": 2},
        "fp32_from_fp16_params": [[p.float() for p in group] for group in groups],
    }


def rank_file(weights, layout, stage, rank, args=None, seed=0):
    """The object that one rank pickles into model_optim_rng.pt."""
    out = {}
    if layout.with_args:
        out["args"] = args or megatron_args.namespace(weights.geometry, layout)
    if layout.version is not None:
        out["checkpoint_version"] = layout.version
    out["iteration"] = layout.iteration
    out |= model_chunks(weights, layout, stage, rank)
    if layout.with_optimizer:
        out["optimizer"] = _optimizer(model_chunks(weights, layout, stage, rank))
        out["opt_param_scheduler"] = {"max_lr": 9e-5, "lr_warmup_steps": 2304000, "num_steps": 11520,
                                      "lr_decay_style": "cosine", "min_lr": 9e-6}
    if layout.with_rng:
        state = megatron_args.rng_state(torch.Generator().manual_seed(seed * 64 + stage * 8 + rank))
        # v1 and v2 kept the generators beside the model, later versions in a list.
        out |= {"rng_state": [state]} if layout.order >= 3.0 else state
    return out


def write(weights, root, layout, seed=0):
    """Makes the checkpoint below `root` (which may exist) and returns the completed layout."""
    layout = complete(weights, layout)
    for stage in range(layout.pp):
        for rank in range(layout.tp):
            folder = root / layout.step_dir() / layout.stage_dir(rank, stage)
            folder.mkdir(parents=True)
            # Each file owns its tensors: a slice would take the whole storage with it.
            content = _own(rank_file(weights, layout, stage, rank, seed=seed))
            torch.save(content, folder / "model_optim_rng.pt")
    tracker = "release" if layout.release else str(layout.iteration)
    (root / "latest_checkpointed_iteration.txt").write_text(tracker)
    return layout


def _own(node):
    """The same structure with every tensor alone in its storage, as a module's parameters are."""
    if isinstance(node, torch.Tensor):
        return node.detach().clone(memory_format=torch.contiguous_format)
    if isinstance(node, OrderedDict):
        out = OrderedDict((k, _own(v)) for k, v in node.items())
        if hasattr(node, "_metadata"):
            out._metadata = node._metadata
        return out
    if type(node) is dict:
        return {k: _own(v) for k, v in node.items()}
    if type(node) is list:
        return [_own(v) for v in node]
    return node


def write_deepspeed(weights, root, layout, tied_file=False):
    """Megatron-DeepSpeed's pipeline files: one per layer and tensor rank."""
    layout = complete(weights, replace(layout, style="deepspeed", pp=1))
    g, t = weights.geometry, weights.tensors
    folder = root / f"global_step{layout.iteration}"
    folder.mkdir(parents=True)

    def save(index, rank, pairs):
        torch.save(_own(OrderedDict(pairs)), folder / f"layer_{index:02d}-model_{rank:02d}-model_states.pt")
    for rank in range(layout.tp):
        words = [("word_embeddings.weight", _rows(weights.table("embed", layout.vocab), layout, rank))]
        if "pos" in t:
            words.append(("position_embeddings.weight", t["pos"]))
        words += [(f"word_embeddings.norm.{s}", t[f"embed_norm.{s}"]) for s in ("weight", "bias")
                  if f"embed_norm.{s}" in t]
        save(1, rank, words)
        for layer in range(g.layers):
            save(layer + 3, rank, [(legacy_name(kind, "layernorm"), tensor)
                                   for kind, tensor in layer_tensors(weights, layout, layer, rank)])
        save(g.layers + 4, rank, [(s, t[f"final.{s}"]) for s in ("weight", "bias")])
        if tied_file:
            save(g.layers + 5, rank, words)
        states = {"module": None, "buffer_names": [], "optimizer": None, "lr_scheduler": None,
                  "sparse_tensor_module_names": set(), "skipped_steps": 0,
                  "global_steps": layout.iteration, "global_samples": 1152 * layout.iteration,
                  "dp_world_size": 1, "mp_world_size": layout.tp, "ds_version": "0.6.5",
                  "checkpoint_version": 3.0, "iteration": layout.iteration,
                  "tokens": 2048 * 1152 * layout.iteration,
                  "args": megatron_args.namespace(g, layout)}
        torch.save(states, folder / f"mp_rank_{rank:02d}_model_states.pt")
    (root / "latest").write_text(f"global_step{layout.iteration}")
    return layout
