#!/usr/bin/env python3
"""Makes the tiny random models of this folder, their logits and their greedy continuations.

For each case: config.json (long-standing keys), model.safetensors as transformers writes it, and
golden.json with logits-<n>.npy. Seeds are searched until the greedy text is varied, never meets
EOS and never decides by a hair, so that a right decoder must give the same ids.

Needs torch, transformers, safetensors, numpy. Usage: make.py [case ...]
"""
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from yuan_model import Yuan

HERE = Path(__file__).resolve().parent
GREEDY = 64
PROMPT_LENGTHS = (9, 17)
VOCAB = 97

GPT2 = dict(architectures=["GPT2LMHeadModel"], model_type="gpt2", vocab_size=VOCAB, n_positions=96,
            n_ctx=96, n_embd=24, n_layer=4, n_head=4, n_inner=None, activation_function="gelu_new",
            layer_norm_epsilon=1e-5, scale_attn_weights=True, bos_token_id=1, eos_token_id=2)
OPT = dict(architectures=["OPTForCausalLM"], model_type="opt", vocab_size=VOCAB, hidden_size=24,
           num_hidden_layers=4, ffn_dim=68, max_position_embeddings=96, num_attention_heads=4,
           activation_function="relu", do_layer_norm_before=True, word_embed_proj_dim=24,
           bos_token_id=2, eos_token_id=2, pad_token_id=1)
BLOOM = dict(architectures=["BloomForCausalLM"], model_type="bloom", vocab_size=VOCAB, hidden_size=24,
             n_layer=3, n_head=12, layer_norm_epsilon=1e-5,
             apply_residual_connection_post_layernorm=False, bos_token_id=1, eos_token_id=2,
             pad_token_id=3)
GPTJ = dict(architectures=["GPTJForCausalLM"], model_type="gptj", vocab_size=VOCAB, n_positions=96,
            n_embd=24, n_layer=4, n_head=4, rotary_dim=4, n_inner=None, activation_function="gelu_new",
            layer_norm_epsilon=1e-5, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
NEOX = dict(architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox", vocab_size=VOCAB,
            hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=76,
            hidden_act="gelu", rotary_pct=0.25, rotary_emb_base=10000, max_position_embeddings=96,
            layer_norm_eps=1e-5, use_parallel_residual=True, bos_token_id=0, eos_token_id=2,
            tie_word_embeddings=False)
LLAMA = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=VOCAB, hidden_size=24,
             intermediate_size=44, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
             hidden_act="silu", max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=10000.0,
             rope_scaling=None, attention_bias=False, mlp_bias=False, tie_word_embeddings=False,
             bos_token_id=1, eos_token_id=2)
QWEN2 = dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", vocab_size=VOCAB, hidden_size=24,
             intermediate_size=44, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
             hidden_act="silu", max_position_embeddings=128, rms_norm_eps=1e-6, rope_theta=1000000.0,
             use_sliding_window=False, sliding_window=128, max_window_layers=4,
             tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
MISTRAL = dict(architectures=["MistralForCausalLM"], model_type="mistral", vocab_size=VOCAB,
               hidden_size=24, intermediate_size=44, num_hidden_layers=4, num_attention_heads=4,
               num_key_value_heads=2, hidden_act="silu", max_position_embeddings=128,
               rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=8, tie_word_embeddings=False,
               bos_token_id=1, eos_token_id=2)
YUAN = dict(architectures=["YuanForCausalLM"], model_type="yuan", vocab_size=VOCAB, hidden_size=24,
            intermediate_size=44, num_hidden_layers=3, num_attention_heads=4, hidden_act="silu",
            max_position_embeddings=128, model_max_length=128, rms_norm_eps=1e-6,
            use_flash_attention=False, causal_mask=True, tie_word_embeddings=True, bos_token_id=2,
            eos_token_id=2, eod_token=2, sep_token=3, pad_token_id=2)
LLAMA3_ROPE = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=32)

CASES = {
    "gpt2": GPT2,
    # A width that is not 4h, scores divided by the layer number, and a head of its own.
    "gpt2-inner": GPT2 | dict(n_inner=44, n_layer=3, scale_attn_by_inverse_layer_idx=True,
                              tie_word_embeddings=False),
    # As the first GPT-2 upload: no `transformer.` prefix, mask buffers among the tensors.
    "gpt2-openai": {k: v for k, v in GPT2.items() if k not in ("n_inner", "scale_attn_weights")}
                   | dict(n_layer=2),
    "opt": OPT,
    "opt-350m": OPT | dict(word_embed_proj_dim=16, do_layer_norm_before=False),
    "opt-untied": OPT | dict(tie_word_embeddings=False, n_layer=2, num_hidden_layers=2),
    "bloom": BLOOM,
    "bloom-post": BLOOM | dict(n_head=6, apply_residual_connection_post_layernorm=True),
    "bloom-untied": BLOOM | dict(n_head=4, tie_word_embeddings=False),
    # lm_head stored although it equals the embedding, as fine-tuning tools save it.
    "bloom-equal-head": BLOOM | dict(n_head=8, n_layer=2),
    "gptj": GPTJ,
    "gpt_neox": NEOX,
    "gpt_neox-serial": NEOX | dict(use_parallel_residual=False, hidden_act="gelu_fast"),
    "llama": LLAMA,
    "llama-mha": LLAMA | dict(num_key_value_heads=4),
    "llama-bias": LLAMA | dict(attention_bias=True, mlp_bias=True),
    "llama-tied": LLAMA | dict(tie_word_embeddings=True),
    "llama-rope3": LLAMA | dict(rope_theta=500000.0, rope_scaling=LLAMA3_ROPE),
    "llama-linear": LLAMA | dict(num_hidden_layers=2, rope_scaling={"type": "linear", "factor": 2.0}),
    "llama-headdim": LLAMA | dict(head_dim=10),
    # The keys a first-generation config.json has and no more.
    "llama-minimal": {k: v for k, v in LLAMA.items()
                      if k in ("architectures", "model_type", "vocab_size", "hidden_size",
                               "intermediate_size", "num_hidden_layers", "num_attention_heads",
                               "hidden_act", "rms_norm_eps", "bos_token_id", "eos_token_id")}
                     | dict(num_hidden_layers=2, max_sequence_length=128),
    "qwen2": QWEN2,
    "qwen2-tied": QWEN2 | dict(tie_word_embeddings=True),
    "mistral-window": MISTRAL,
    "yuan": YUAN,
    "yuan-groups": YUAN | dict(lf_conv2d_group=2, num_hidden_layers=2, tie_word_embeddings=False),
    # Output channels of a rank that begin and end inside a group; angles as the training had them.
    "yuan-bf16-rope": YUAN | dict(lf_conv2d_group=3, num_hidden_layers=2,
                                  rope_precision="megatron_bf16"),
}
# Largest error of a logit as a part of their range, where it is not 1e-4: a product that F32 puts
# on the other side of a BF16 tie moves by 1/256.
TOLERANCES = {"yuan-bf16-rope": 2e-3}
# Other containers of the same weights, in a folder inside the case's.
CONTAINERS = {
    "gpt2": ["torch-zip"],
    "opt": ["torch-legacy"],
    "llama": ["safetensors-sharded"],
    "llama-mha": ["torch-sharded"],
}


def randomise(model, generator):
    """Weights large enough that a wrong one shows, norms and biases that are not 1 and 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                is_norm = name.endswith("weight")
                parameter.copy_(1.0 + 0.3 * noise if is_norm else 0.2 * noise)
            elif "embed" in name or "wte" in name or "lm_head" in name or "embed_out" in name:
                # A faint EOS row keeps 64 greedy steps from meeting it.
                noise[model.config.eos_token_id] *= 0.2
                parameter.copy_(noise)
            elif "wpe" in name:
                parameter.copy_(noise)
            else:
                # Conv1D keeps [in, out], nn.Linear [out, in], nn.Conv2d [out, in, taps, 1].
                conv1d = model.config.model_type == "gpt2"
                fan_in = parameter.shape[0] if conv1d else parameter[0].numel()
                parameter.copy_(2.2 / fan_in**0.5 * noise)


@torch.no_grad()
def greedy(model, prompts, distinct, margin):
    """64 greedy ids of each row of `prompts`; whether each is clear-cut and varied enough to keep."""
    ids = prompts
    good = torch.ones(len(prompts), dtype=torch.bool)
    for _ in range(GREEDY):
        rows = model(ids, use_cache=False).logits[:, -1]
        best = torch.topk(rows, 2)
        spread = rows.max(-1).values - rows.min(-1).values
        good &= best.values[:, 0] - best.values[:, 1] > margin * spread
        good &= best.indices[:, 0] != model.config.eos_token_id
        ids = torch.cat([ids, best.indices[:, :1]], dim=1)
    chosen = ids[:, prompts.shape[1]:].tolist()
    return chosen, [bool(ok) and len(set(row)) >= distinct for ok, row in zip(good, chosen)]


def new_model(config_dir):
    if json.loads((config_dir / "config.json").read_text())["model_type"] == "yuan":
        return Yuan(json.loads((config_dir / "config.json").read_text()))
    config = transformers.AutoConfig.from_pretrained(config_dir)
    return transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager").eval()


def open_model(folder):
    if json.loads((folder / "config.json").read_text())["model_type"] == "yuan":
        return Yuan.from_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager").eval()


def build(case, config_dir):
    """The first seed whose greedy continuations are worth keeping: (model, prompts, ids, seed)."""
    model = new_model(config_dir)
    margin = 4 * TOLERANCES.get(case, 1e-4)
    for seed in range(1, 400):
        generator = torch.Generator().manual_seed(seed)
        randomise(model, generator)
        prompts, continuations = [], []
        for length in PROMPT_LENGTHS:
            candidates = torch.randint(4, VOCAB, (32, length), generator=generator)
            # Post-norm models fall into short loops more easily; ask less of late seeds.
            chosen, good = greedy(model, candidates, max(5, 10 - seed), margin)
            if any(good):
                best = max((len(set(row)), i) for i, row in enumerate(chosen) if good[i])[1]
                row = candidates[best:best + 1]
                assert greedy(model, row, 0, margin)[0][0] == chosen[best]
                prompts.append(row[0].tolist())
                continuations.append(chosen[best])
        if len(prompts) == len(PROMPT_LENGTHS):
            return model, prompts, continuations, seed
    sys.exit(f"{case}: no seed gives a varied greedy text")


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_weights(case, model, out):
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        tensors = load_file(f"{scratch}/model.safetensors")
        if case == "gpt2-openai":
            tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
            size = model.config.n_positions
            for layer in range(model.config.n_layer):
                tensors[f"h.{layer}.attn.bias"] = torch.tril(torch.ones(1, 1, size, size))
            save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        elif case == "bloom-equal-head":
            tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"].clone()
            save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        else:
            shutil.copyfile(f"{scratch}/model.safetensors", out / "model.safetensors")
    (out / "model.safetensors").chmod(0o644)


def write_container(kind, model, out, config):
    """The same weights as `kind`; torch files keep lm_head as a second name of one storage."""
    out.mkdir()
    write_json(out / "config.json", config)
    state = model.state_dict()
    if kind == "torch-zip":
        torch.save(state, out / "pytorch_model.bin")
    elif kind == "torch-legacy":
        torch.save(state, out / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif kind == "safetensors-sharded":
        with tempfile.TemporaryDirectory() as scratch:
            model.save_pretrained(scratch, max_shard_size="50KB")
            for path in Path(scratch).glob("model*"):
                shutil.copyfile(path, out / path.name)
    elif kind == "torch-sharded":
        names = list(state)
        thirds = [names[0::3], names[1::3], names[2::3]]
        weight_map = {}
        for index, part in enumerate(thirds, 1):
            file_name = f"pytorch_model-{index:05}-of-{len(thirds):05}.bin"
            # A clone each, as state-dict tools do: a view would drag its whole storage along.
            torch.save({name: state[name].clone() for name in part}, out / file_name)
            weight_map |= {name: file_name for name in part}
        total = sum(value.numel() * value.element_size() for value in state.values())
        write_json(out / "pytorch_model.bin.index.json",
                   {"metadata": {"total_size": total}, "weight_map": weight_map})


@torch.no_grad()
def make(case):
    out = HERE / case
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    config = CASES[case] | dict(torch_dtype="float32")
    write_json(out / "config.json", config)
    model, prompts, continuations, seed = build(case, out)
    write_weights(case, model, out)
    for kind in CONTAINERS.get(case, []):
        write_container(kind, model, out / kind, config)

    # What is stored is what a reader of the directory gets, not what this process holds.
    reread = open_model(out)
    cases = []
    for index, (prompt, continuation) in enumerate(zip(prompts, continuations)):
        logits = reread(torch.tensor([prompt]), use_cache=False).logits[0].numpy()
        assert np.array_equal(logits, model(torch.tensor([prompt]), use_cache=False).logits[0].numpy())
        np.save(out / f"logits-{index}.npy", logits.astype("<f4"))
        cases.append(dict(input_ids=prompt, logits=f"logits-{index}.npy", greedy_ids=continuation))
    maker = "yuan_model.py" if isinstance(model, Yuan) else f"transformers {transformers.__version__}"
    golden = dict(made_by=f"{maker}, torch {torch.__version__}", seed=seed, cases=cases)
    if case in TOLERANCES:
        golden["tolerance"] = TOLERANCES[case]
    write_json(out / "golden.json", golden)
    text = (out / "golden.json").read_text()
    # One list of numbers per line.
    import re
    text = re.sub(r"\[\s+([-\d,\s]+?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", text)
    (out / "golden.json").write_text(text)
    size = sum(f.stat().st_size for f in out.iterdir() if f.is_file())
    print(f"{case}: seed {seed}, {size} bytes, distinct "
          f"{[len(set(c['greedy_ids'])) for c in cases]}", flush=True)


def main():
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for case in sys.argv[1:] or CASES:
        make(case)


if __name__ == "__main__":
    main()
