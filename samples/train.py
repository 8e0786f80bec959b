#!/usr/bin/env python3
"""Trains the sample models of this folder: a small LLaMA and a small BLOOM that tell stories.

Each run trains one byte-level BPE tokenizer and one model on a JSON list of stories and writes a
Hugging Face directory: config.json, generation_config.json, model.safetensors, tokenizer.json,
tokenizer_config.json, special_tokens_map.json. See samples/README.md for the commands used.

Needs torch, transformers, tokenizers, safetensors, numpy; runs on CUDA when there is a device.
"""
import argparse
import contextlib
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 2048
CONTEXT = 512
# 8 heads, so that tensor parallel 2, 4 and 8 all divide them; 8 layers, so that pipeline 2, 4 and
# 8 do. Both models stay under 4 MB in two-byte weights.
HIDDEN, LAYERS, HEADS, KV_HEADS = 128, 8, 8, 4

CONFIGS = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": 352,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    },
    "bloom": {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "hidden_size": HIDDEN,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "layer_norm_epsilon": 1e-5,
        "apply_residual_connection_post_layernorm": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "seq_length": CONTEXT,
        "torch_dtype": "float16",
        "use_cache": True,
    },
}
BLOOM_PATTERN = " ?[^(\\s|[.,!?…。，、।۔،])]+"
PROMPTS = ["Once upon a time", "One day, a little girl named Lily", "Tom had a red ball."]


def read_stories(path):
    """The stories, with the mojibake of the published file ("â€œ" for a quote) put right."""
    repairs = [("â€œ", '"'), ("â€™", "'"), ("â€", '"'), ("“", '"'), ("”", '"')]
    stories = []
    for story in json.loads(Path(path).read_text(encoding="utf-8")):
        for bad, good in repairs:
            story = story.replace(bad, good)
        stories.append(story.strip())
    return stories


def train_tokenizer(family, stories):
    """Byte-level BPE: GPT-2's pre-tokeniser and a BOS for LLaMA, BLOOM's own and none for BLOOM."""
    tokenizer = Tokenizer(models.BPE())
    if family == "bloom":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(BLOOM_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
        special = ["<unk>", "<s>", "</s>", "<pad>"]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        special = ["<unk>", "<s>", "</s>"]
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(stories, trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=special, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    byte_level = processors.ByteLevel(trim_offsets=family == "bloom")
    if family == "llama":
        template = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
        tokenizer.post_processor = processors.Sequence([byte_level, template])
    else:
        tokenizer.post_processor = byte_level
    return tokenizer


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_sidecars(family, out, tokenizer):
    """Everything of the Hugging Face directory but the weights."""
    config = CONFIGS[family]
    write_json(out / "config.json", config)
    generation = {"bos_token_id": 1, "eos_token_id": 2, "do_sample": False}
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if "pad_token_id" in config:
        generation["pad_token_id"] = config["pad_token_id"]
        tokens["pad_token"] = "<pad>"
    write_json(out / "generation_config.json", generation)
    write_json(out / "special_tokens_map.json", tokens)
    write_json(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False, **tokens})
    tokenizer.save(str(out / "tokenizer.json"))


def encode_stream(family, tokenizer, stories, rng):
    """All stories end to end in shuffled order, each closed by EOS; also where each begins."""
    prefix = [1] if family == "llama" else []
    ids, starts = [], []
    for index in rng.permutation(len(stories)):
        starts.append(len(ids))
        ids += prefix + tokenizer.encode(stories[index], add_special_tokens=False).ids + [2]
    return ids, starts


def add_dropout(model, probability):
    """Dropout on what each block adds to the residual stream; the saved model knows nothing of it."""
    def hook(module, _inputs, output):
        return torch.nn.functional.dropout(output, probability, module.training)
    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj", "self_attention.dense", "dense_4h_to_h")):
            module.register_forward_hook(hook)


def build_model(family, out, args, device):
    config = transformers.AutoConfig.from_pretrained(out)
    config.use_cache = False
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.to(device)
    if family == "bloom":
        # BLOOM's linears add their residual inside the block, so its dropout is the config's.
        for module in model.modules():
            if hasattr(module, "hidden_dropout"):
                module.hidden_dropout = args.dropout
    else:
        add_dropout(model, args.dropout)
    return model


@torch.no_grad()
def held_out_loss(model, ids, device, autocast):
    model.eval()
    rows = torch.tensor(ids[:len(ids) // CONTEXT * CONTEXT], device=device).view(-1, CONTEXT)
    total = 0.0
    for row in rows.split(16):
        with autocast():
            total += model(input_ids=row, labels=row).loss.item() * len(row)
    model.train()
    return total / len(rows)


def train(family, out, args):
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    rng = np.random.default_rng(args.seed)
    autocast = (lambda: torch.autocast("cuda", torch.bfloat16)) if device == "cuda" \
        else contextlib.nullcontext

    stories = read_stories(args.stories)
    held_out = stories[::20]
    kept = [story for index, story in enumerate(stories) if index % 20]
    tokenizer = train_tokenizer(family, kept)
    write_sidecars(family, out, tokenizer)
    validation, _ = encode_stream(family, tokenizer, held_out, rng)
    model = build_model(family, out, args, device)
    num_parameters = sum(p.numel() for p in model.parameters())
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay},
         {"params": plain, "weight_decay": 0.0}],
        lr=args.lr, betas=(0.9, 0.98), fused=device == "cuda")

    began = time.monotonic()
    step, progress, epoch, loss = 0, 0.0, 0, torch.zeros(())
    model.train()
    while progress < 1.0:
        ids, starts = encode_stream(family, tokenizer, kept, rng)
        stream = torch.tensor(ids + ids[:CONTEXT], device=device)
        # Half of the rows begin where a story begins, so that position 0 looks like a prompt.
        steps_per_epoch = max(1, len(ids) // (args.batch * CONTEXT))
        for _ in range(steps_per_epoch):
            elapsed = time.monotonic() - began
            progress = max(step / (steps_per_epoch * args.epochs), elapsed / args.seconds)
            if progress >= 1.0:
                break
            half = args.batch // 2
            begin = np.concatenate([rng.choice(starts, half),
                                    rng.integers(0, len(ids), args.batch - half)])
            begin = torch.tensor(begin, device=device)
            rows = stream[begin[:, None] + torch.arange(CONTEXT, device=device)[None, :]]
            warm = min(1.0, (step + 1) / 50)
            for group in optimizer.param_groups:
                group["lr"] = args.lr * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
            with autocast():
                loss = model(input_ids=rows, labels=rows).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
        epoch += 1
        if epoch % args.report == 0:
            print(f"{family} epoch {epoch} step {step} {time.monotonic() - began:.0f} s "
                  f"train {loss.item():.3f} held out "
                  f"{held_out_loss(model, validation, device, autocast):.3f}", flush=True)

    print(f"{family}: {num_parameters} parameters, {step} steps, {epoch} epochs, "
          f"{time.monotonic() - began:.1f} s, train loss {loss.item():.3f}, held-out loss "
          f"{held_out_loss(model, validation, device, autocast):.3f} nats/token", flush=True)
    dtype = getattr(torch, CONFIGS[family]["torch_dtype"])
    tensors = {name: value.detach().to("cpu", dtype).contiguous()
               for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def show_samples(out):
    """Reads the directory back, as a user would, and prints greedy continuations."""
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        ids = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=120, do_sample=False)
        print(f"--- {out}: {tokenizer.decode(ids[0].tolist())}", flush=True)
    print(f"{out}: {sum(f.stat().st_size for f in out.iterdir())} bytes", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=sorted(CONFIGS))
    parser.add_argument("--stories", required=True, help="JSON list of stories")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seconds", type=float, default=60, help="wall-clock budget of training")
    parser.add_argument("--epochs", type=int, default=60, help="stop earlier after this many")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", help="cuda or cpu; default: cuda if there is one")
    parser.add_argument("--report", type=int, default=10, help="print the losses every so many epochs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args.family, args.out, args)
    show_samples(args.out)


if __name__ == "__main__":
    main()
