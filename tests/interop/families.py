"""Random models of every family, of random odd sizes, and the files that hold them."""
import importlib.util
import json
import os
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

# The generator imports what lies beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden/families"))
_spec = importlib.util.spec_from_file_location(
    "golden_families", Path(__file__).resolve().parents[1] / "golden/families/make.py")
_golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_golden)


def _common(rng, heads_of=(3, 4, 4, 5, 8, 8, 12)):
    heads = rng.choice(heads_of)
    head_dim = rng.choice([4, 6, 8] if heads <= 4 else [2, 4, 6])
    return dict(heads=heads, hidden=heads * head_dim, head_dim=head_dim, layers=rng.choice([1, 2, 3]),
                ffn=heads * 4 * rng.randint(2, 6), vocab=rng.randint(37, 130), bos=1, eos=2)


def gpt2(rng):
    s = _common(rng)
    return transformers.GPT2Config(
        vocab_size=s["vocab"], n_positions=64, n_embd=s["hidden"], n_layer=s["layers"],
        n_head=s["heads"], n_inner=rng.choice([None, s["ffn"]]), bos_token_id=1, eos_token_id=2,
        scale_attn_by_inverse_layer_idx=False, tie_word_embeddings=rng.random() < 0.7)


def opt(rng):
    s = _common(rng)
    return transformers.OPTConfig(
        vocab_size=s["vocab"], hidden_size=s["hidden"], num_hidden_layers=s["layers"],
        ffn_dim=s["ffn"], max_position_embeddings=64, num_attention_heads=s["heads"],
        do_layer_norm_before=True, word_embed_proj_dim=s["hidden"], bos_token_id=2, eos_token_id=2,
        pad_token_id=1)


def opt_350m(rng):
    config = opt(rng)
    config.word_embed_proj_dim = config.hidden_size // 2 + 1
    config.do_layer_norm_before = False
    return config


def bloom(rng):
    s = _common(rng)
    return transformers.BloomConfig(
        vocab_size=s["vocab"], hidden_size=s["hidden"], n_layer=s["layers"], n_head=s["heads"],
        apply_residual_connection_post_layernorm=rng.random() < 0.3, bos_token_id=1, eos_token_id=2,
        pad_token_id=3, tie_word_embeddings=rng.random() < 0.7)


def gptj(rng):
    s = _common(rng)
    return transformers.GPTJConfig(
        vocab_size=s["vocab"], n_positions=64, n_embd=s["hidden"], n_layer=s["layers"],
        n_head=s["heads"], rotary_dim=rng.choice([2, s["head_dim"]]),
        n_inner=rng.choice([None, s["ffn"]]), bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False)


def gpt_neox(rng):
    s = _common(rng, (3, 4, 8))
    hidden = s["heads"] * 8
    return transformers.GPTNeoXConfig(
        vocab_size=s["vocab"], hidden_size=hidden, num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"], intermediate_size=s["ffn"], hidden_act="gelu",
        rotary_pct=rng.choice([0.25, 0.5, 1.0]), max_position_embeddings=64,
        use_parallel_residual=rng.random() < 0.5, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False)


def _llama_sizes(rng, mha=False):
    s = _common(rng)
    kv = s["heads"] if mha else rng.choice([k for k in (1, 2, 4, s["heads"]) if s["heads"] % k == 0])
    return dict(
        vocab_size=s["vocab"], hidden_size=s["hidden"], intermediate_size=s["ffn"],
        num_hidden_layers=s["layers"], num_attention_heads=s["heads"], num_key_value_heads=kv,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
        rms_norm_eps=rng.choice([1e-5, 1e-6]), tie_word_embeddings=rng.random() < 0.3)


def llama(rng):
    return transformers.LlamaConfig(**_llama_sizes(rng))


def llama_mha(rng):
    return transformers.LlamaConfig(**_llama_sizes(rng, mha=True))


def llama_bias(rng):
    return transformers.LlamaConfig(**_llama_sizes(rng), attention_bias=True, mlp_bias=True,
                                    rope_theta=rng.choice([5000.0, 500000.0]))


def llama_wide_heads(rng):
    sizes = _llama_sizes(rng)
    return transformers.LlamaConfig(**sizes, head_dim=10)


def llama_rope(rng):
    kinds = [dict(rope_type="linear", factor=3.0),
             dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=16),
             dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)]
    return transformers.LlamaConfig(**_llama_sizes(rng),
                                    rope_parameters=rng.choice(kinds) | dict(rope_theta=20000.0))


def qwen2(rng):
    return transformers.Qwen2Config(**_llama_sizes(rng), rope_theta=1000000.0)


def mistral(rng):
    return transformers.MistralConfig(**_llama_sizes(rng), sliding_window=None)


FAMILIES = dict(gpt2=gpt2, opt=opt, opt_350m=opt_350m, bloom=bloom, gptj=gptj, gpt_neox=gpt_neox,
                llama=llama, llama_mha=llama_mha, llama_bias=llama_bias,
                llama_wide_heads=llama_wide_heads, llama_rope=llama_rope, qwen2=qwen2, mistral=mistral)


def build(config, dtype=torch.float32):
    """A model of that config with random weights large enough for a wrong one to show."""
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager").eval()
    _golden.randomise(model, torch.Generator().manual_seed(int(torch.randint(2**31, ()))))
    return model.to(dtype)


def new_yuan(config):
    """Random Yuan 2.0 weights in tests/golden/families/yuan_model.py, for a config.json."""
    model = _golden.Yuan(config)
    _golden.randomise(model, torch.Generator().manual_seed(int(torch.randint(2**31, ()))))
    return model


def fits(config, tp):
    """Whether tensor parallel size `tp` divides what it must."""
    kv = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return config.num_attention_heads % tp == 0 and (kv % tp == 0 or tp % kv == 0)


def tp_sizes(config):
    """The tensor parallel sizes to try; every MLP here is a multiple of the head count wide."""
    # GPT-NeoX divides two biases by tp, which loses nothing for powers of two alone.
    sizes = (1, 2, 4) if config.model_type == "gpt_neox" else (1, 2, 3, 4, 5)
    return [tp for tp in sizes if fits(config, tp)]


def classic_config(folder):
    """Rewrites config.json with the keys that transformers 4 wrote."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    config["torch_dtype"] = config.pop("dtype")
    rope = config.pop("rope_parameters", None)
    if rope:
        theta, share = rope.pop("rope_theta"), rope.pop("partial_rotary_factor", None)
        config["rotary_emb_base" if config["model_type"] == "gpt_neox" else "rope_theta"] = theta
        if share is not None:
            config["rotary_pct"] = share
        config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    path.write_text(json.dumps(config, indent=2))


def minimal_config(folder):
    """Leaves out of config.json every key whose default says the same; returns those left out."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    kept = ("model_type", "architectures")
    full = transformers.AutoConfig.from_pretrained(folder).to_dict()
    left_out = []
    for key in sorted(set(config) - set(kept)):
        fewer = {k: v for k, v in config.items() if k != key}
        path.write_text(json.dumps(fewer))
        try:
            same = transformers.AutoConfig.from_pretrained(folder).to_dict() == full
        except Exception:  # transformers refuses what contradicts a default
            same = False
        if same:
            config = fewer
            left_out.append(key)
    path.write_text(json.dumps(config))
    return left_out


CONTAINERS = ["safetensors", "safetensors-sharded", "torch-zip", "torch-legacy", "torch-sharded"]


def save(model, folder, container="safetensors", classic=False):
    """Writes a Hugging Face directory as transformers and torch.save write it; returns the stored
    tensors by name, as a reader of the directory should see them."""
    sharded = container == "safetensors-sharded"
    model.save_pretrained(folder, max_shard_size="20KB" if sharded else "5GB")
    if classic:
        classic_config(folder)
    files = sorted(folder.glob("*.safetensors"))
    stored = {name: tensor for path in files for name, tensor in load_file(path).items()}
    if not container.startswith("torch"):
        return stored
    for path in [*files, *folder.glob("*.index.json")]:
        path.unlink()
    if container == "torch-sharded":
        names = sorted(stored)
        weight_map = {}
        for part in range(2):
            file_name = f"pytorch_model-{part + 1:05}-of-00002.bin"
            torch.save({name: stored[name] for name in names[part::2]}, folder / file_name)
            weight_map |= {name: file_name for name in names[part::2]}
        (folder / "pytorch_model.bin.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map}))
    else:
        torch.save(stored, folder / "pytorch_model.bin",
                   _use_new_zipfile_serialization=container == "torch-zip")
    return stored


def read_safetensors(folder):
    """All tensors of a directory by name, by the safetensors library; the index must agree."""
    files = sorted(Path(folder).glob("*.safetensors"))
    assert files, f"no safetensors in {sorted(os.listdir(folder))}"
    tensors, where = {}, {}
    for path in files:
        for name, tensor in load_file(path).items():
            assert name not in tensors, f"{name} twice"
            tensors[name], where[name] = tensor, path.name
    index = Path(folder) / "model.safetensors.index.json"
    if len(files) > 1:
        content = json.loads(index.read_text())
        assert content["weight_map"] == where
        assert content["metadata"]["total_size"] == sum(
            t.numel() * t.element_size() for t in tensors.values())
    return tensors


def assert_same_bits(actual, expected, what):
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: {actual.shape}, expected {expected.shape}"
    a = actual.contiguous().reshape(-1).view(torch.uint8)
    b = expected.contiguous().reshape(-1).view(torch.uint8)
    assert torch.equal(a, b), f"{what}: {int((a != b).sum())} of {a.numel()} bytes differ"
