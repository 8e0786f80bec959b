"""FasterTransformer's layout, written out tensor by tensor: the formulas to hold llmctl against.

Independent of llmctl's notation on purpose. `expected(model, tp, dtype)` gives every .bin file of
`<tp>-gpu/` as a torch tensor in that file's element order.
"""
import torch


def _heads_of_rank(tensor, heads, tp, rank):
    """Of a [..., heads * d] tensor the part of that rank; heads fewer than tp are replicated."""
    d = tensor.shape[-1] // heads
    grid = tensor.reshape(*tensor.shape[:-1], heads, d)
    if heads >= tp:
        part = grid[..., rank * (heads // tp):(rank + 1) * (heads // tp), :]
    else:
        part = grid[..., rank * heads // tp:rank * heads // tp + 1, :]
    return part.reshape(*tensor.shape[:-1], -1)


def _transposed(tensor):
    return tensor.T if tensor.dim() == 2 else tensor


class _Writer:
    def __init__(self, tp, dtype):
        self.tp, self.dtype, self.files = tp, dtype, {}

    def whole(self, name, tensor):
        self.files[f"model.{name}.bin"] = tensor.to(self.dtype)

    def split(self, name, tensor, axis):
        assert tensor.shape[axis] % self.tp == 0
        for rank, part in enumerate(tensor.to(self.dtype).chunk(self.tp, axis)):
            self.files[f"model.{name}.{rank}.bin"] = part

    def qkv(self, name, q, k, v, heads, kv):
        for rank in range(self.tp):
            parts = [_heads_of_rank(t.to(self.dtype), n, self.tp, rank)
                     for t, n in ((q, heads), (k, kv), (v, kv))]
            self.files[f"model.{name}.{rank}.bin"] = torch.cat(parts, -1)

    def norm(self, name, state, source):
        self.whole(f"{name}.weight", state[f"{source}.weight"])
        if f"{source}.bias" in state:
            self.whole(f"{name}.bias", state[f"{source}.bias"])


def _gpt2(w, c, s):
    s = {name.removeprefix("transformer."): value for name, value in s.items()}
    w.whole("wte", s["wte.weight"])
    w.whole("wpe", s["wpe.weight"])
    w.norm("final_layernorm", s, "ln_f")
    if not c.tie_word_embeddings:
        w.whole("lm_head.weight", s["lm_head.weight"])
    for l in range(c.n_layer):
        a, b = f"layers.{l}", f"h.{l}"
        w.norm(f"{a}.input_layernorm", s, f"{b}.ln_1")
        w.norm(f"{a}.post_attention_layernorm", s, f"{b}.ln_2")
        for kind in ("weight", "bias"):
            q, k, v = s[f"{b}.attn.c_attn.{kind}"].chunk(3, -1)
            w.qkv(f"{a}.attention.query_key_value.{kind}", q, k, v, c.n_head, c.n_head)
        w.split(f"{a}.attention.dense.weight", s[f"{b}.attn.c_proj.weight"], 0)
        w.whole(f"{a}.attention.dense.bias", s[f"{b}.attn.c_proj.bias"])
        w.split(f"{a}.mlp.dense_h_to_4h.weight", s[f"{b}.mlp.c_fc.weight"], 1)
        w.split(f"{a}.mlp.dense_h_to_4h.bias", s[f"{b}.mlp.c_fc.bias"], 0)
        w.split(f"{a}.mlp.dense_4h_to_h.weight", s[f"{b}.mlp.c_proj.weight"], 0)
        w.whole(f"{a}.mlp.dense_4h_to_h.bias", s[f"{b}.mlp.c_proj.bias"])


def _opt(w, c, s):
    s = {name.removeprefix("model.decoder."): value for name, value in s.items()}
    embed = s["embed_tokens.weight"]
    if "project_in.weight" in s:
        w.whole("wte", embed @ s["project_in.weight"].T)
        w.whole("lm_head.weight", embed @ s["project_out.weight"])
    else:
        w.whole("wte", embed)
        w.whole("lm_head.weight", s.get("lm_head.weight", embed))
    w.whole("wpe", s["embed_positions.weight"][2:])
    if "final_layer_norm.weight" in s:
        w.norm("final_layernorm", s, "final_layer_norm")
    for l in range(c.num_hidden_layers):
        a = b = f"layers.{l}"
        w.norm(f"{a}.input_layernorm", s, f"{b}.self_attn_layer_norm")
        w.norm(f"{a}.post_attention_layernorm", s, f"{b}.final_layer_norm")
        for kind in ("weight", "bias"):
            q, k, v = (_transposed(s[f"{b}.self_attn.{x}_proj.{kind}"]) for x in "qkv")
            w.qkv(f"{a}.attention.query_key_value.{kind}", q, k, v, c.num_attention_heads,
                  c.num_attention_heads)
        w.split(f"{a}.attention.dense.weight", s[f"{b}.self_attn.out_proj.weight"].T, 0)
        w.whole(f"{a}.attention.dense.bias", s[f"{b}.self_attn.out_proj.bias"])
        w.split(f"{a}.mlp.dense_h_to_4h.weight", s[f"{b}.fc1.weight"].T, 1)
        w.split(f"{a}.mlp.dense_h_to_4h.bias", s[f"{b}.fc1.bias"], 0)
        w.split(f"{a}.mlp.dense_4h_to_h.weight", s[f"{b}.fc2.weight"].T, 0)
        w.whole(f"{a}.mlp.dense_4h_to_h.bias", s[f"{b}.fc2.bias"])


def _per_head_qkv(w, name, tensor, heads):
    """Rows (heads, 3, d), as BLOOM and GPT-NeoX store them."""
    d = tensor.shape[0] // (3 * heads)
    grid = tensor.reshape(heads, 3, d, -1)
    parts = [grid[:, i].reshape(heads * d, -1).T for i in range(3)]
    if tensor.dim() == 1:
        parts = [part.reshape(-1) for part in parts]
    w.qkv(name, *parts, heads, heads)


def _bloom(w, c, s):
    s = {name.removeprefix("transformer."): value for name, value in s.items()}
    w.whole("wte", s["word_embeddings.weight"])
    if "lm_head.weight" in s and not torch.equal(s["lm_head.weight"], s["word_embeddings.weight"]):
        w.whole("lm_head.weight", s["lm_head.weight"])
    w.norm("pre_decoder_layernorm", s, "word_embeddings_layernorm")
    w.norm("final_layernorm", s, "ln_f")
    for l in range(c.n_layer):
        a, b = f"layers.{l}", f"h.{l}"
        w.norm(f"{a}.input_layernorm", s, f"{b}.input_layernorm")
        w.norm(f"{a}.post_attention_layernorm", s, f"{b}.post_attention_layernorm")
        for kind in ("weight", "bias"):
            _per_head_qkv(w, f"{a}.attention.query_key_value.{kind}",
                          s[f"{b}.self_attention.query_key_value.{kind}"], c.n_head)
        w.split(f"{a}.attention.dense.weight", s[f"{b}.self_attention.dense.weight"].T, 0)
        w.whole(f"{a}.attention.dense.bias", s[f"{b}.self_attention.dense.bias"])
        w.split(f"{a}.mlp.dense_h_to_4h.weight", s[f"{b}.mlp.dense_h_to_4h.weight"].T, 1)
        w.split(f"{a}.mlp.dense_h_to_4h.bias", s[f"{b}.mlp.dense_h_to_4h.bias"], 0)
        w.split(f"{a}.mlp.dense_4h_to_h.weight", s[f"{b}.mlp.dense_4h_to_h.weight"].T, 0)
        w.whole(f"{a}.mlp.dense_4h_to_h.bias", s[f"{b}.mlp.dense_4h_to_h.bias"])


def _gptj(w, c, s):
    s = {name.removeprefix("transformer."): value for name, value in s.items()}
    w.whole("wte", s["wte.weight"])
    w.norm("final_layernorm", s, "ln_f")
    w.whole("lm_head.weight", s["lm_head.weight"])
    w.whole("lm_head.bias", s["lm_head.bias"])
    for l in range(c.n_layer):
        a, b = f"layers.{l}", f"h.{l}"
        w.norm(f"{a}.input_layernorm", s, f"{b}.ln_1")
        q, k, v = (s[f"{b}.attn.{x}_proj.weight"].T for x in "qkv")
        w.qkv(f"{a}.attention.query_key_value.weight", q, k, v, c.n_head, c.n_head)
        w.split(f"{a}.attention.dense.weight", s[f"{b}.attn.out_proj.weight"].T, 0)
        w.split(f"{a}.mlp.dense_h_to_4h.weight", s[f"{b}.mlp.fc_in.weight"].T, 1)
        w.split(f"{a}.mlp.dense_h_to_4h.bias", s[f"{b}.mlp.fc_in.bias"], 0)
        w.split(f"{a}.mlp.dense_4h_to_h.weight", s[f"{b}.mlp.fc_out.weight"].T, 0)
        w.whole(f"{a}.mlp.dense_4h_to_h.bias", s[f"{b}.mlp.fc_out.bias"])


def _gpt_neox(w, c, s):
    s = {name.removeprefix("gpt_neox."): value for name, value in s.items()}
    w.whole("wte", s["embed_in.weight"])
    w.norm("final_layernorm", s, "final_layer_norm")
    w.whole("lm_head.weight", s["embed_out.weight"])
    heads = c.num_attention_heads
    for l in range(c.num_hidden_layers):
        a = b = f"layers.{l}"
        w.norm(f"{a}.input_layernorm", s, f"{b}.input_layernorm")
        w.norm(f"{a}.post_attention_layernorm", s, f"{b}.post_attention_layernorm")
        for kind in ("weight", "bias"):
            _per_head_qkv(w, f"{a}.attention.query_key_value.{kind}",
                          s[f"{b}.attention.query_key_value.{kind}"], heads)
        w.split(f"{a}.attention.dense.weight", s[f"{b}.attention.dense.weight"].T, 0)
        w.split(f"{a}.mlp.dense_h_to_4h.weight", s[f"{b}.mlp.dense_h_to_4h.weight"].T, 1)
        w.split(f"{a}.mlp.dense_h_to_4h.bias", s[f"{b}.mlp.dense_h_to_4h.bias"], 0)
        w.split(f"{a}.mlp.dense_4h_to_h.weight", s[f"{b}.mlp.dense_4h_to_h.weight"].T, 0)
        # Every rank adds these two, so each holds a tp-th, divided in the stored type.
        attention = s[f"{b}.attention.dense.bias"].to(w.dtype) / w.tp
        mlp = s[f"{b}.mlp.dense_4h_to_h.bias"].to(w.dtype) / w.tp
        w.whole(f"{a}.attention.dense.bias", attention)
        w.whole(f"{a}.mlp.dense_4h_to_h.bias", mlp)
        if c.use_parallel_residual:
            w.whole(f"{a}.mlp.attention.bias.sum", attention + mlp)


def _llama(w, c, s):
    s = {name.removeprefix("model."): value for name, value in s.items()}
    w.whole("wte.weight", s["embed_tokens.weight"])
    w.whole("lm_head.weight", s.get("lm_head.weight", s["embed_tokens.weight"]))
    w.norm("final_layernorm", s, "norm")
    heads, kv = c.num_attention_heads, c.num_key_value_heads
    for l in range(c.num_hidden_layers):
        a = b = f"layers.{l}"
        w.norm(f"{a}.input_layernorm", s, f"{b}.input_layernorm")
        w.norm(f"{a}.post_attention_layernorm", s, f"{b}.post_attention_layernorm")
        for kind in ("weight", "bias"):
            if f"{b}.self_attn.q_proj.{kind}" in s:
                q, k, v = (_transposed(s[f"{b}.self_attn.{x}_proj.{kind}"]) for x in "qkv")
                w.qkv(f"{a}.attention.query_key_value.{kind}", q, k, v, heads, kv)
        w.split(f"{a}.attention.dense.weight", s[f"{b}.self_attn.o_proj.weight"].T, 0)
        for part, axis in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 0)):
            w.split(f"{a}.mlp.{part}.weight", s[f"{b}.mlp.{part}.weight"].T, axis)
        # FasterTransformer has no such files; llmctl writes them the same way beside the weights.
        if f"{b}.self_attn.o_proj.bias" in s:
            w.whole(f"{a}.attention.dense.bias", s[f"{b}.self_attn.o_proj.bias"])
        if f"{b}.mlp.up_proj.bias" in s:
            w.split(f"{a}.mlp.gate_proj.bias", s[f"{b}.mlp.gate_proj.bias"], 0)
            w.split(f"{a}.mlp.up_proj.bias", s[f"{b}.mlp.up_proj.bias"], 0)
            w.whole(f"{a}.mlp.down_proj.bias", s[f"{b}.mlp.down_proj.bias"])


_WRITERS = dict(gpt2=_gpt2, opt=_opt, bloom=_bloom, gptj=_gptj, gpt_neox=_gpt_neox, llama=_llama,
                qwen2=_llama, mistral=_llama)


def expected(config, stored, tp, dtype):
    """The files by name, from the config and the tensors of the Hugging Face directory."""
    writer = _Writer(tp, dtype)
    _WRITERS[config.model_type](writer, config, stored)
    return writer.files
