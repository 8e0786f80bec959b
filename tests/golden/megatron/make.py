"""Writes the checkpoints of this folder; see README.md."""
import random
import shutil
import sys
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "interop"))

import megatron_layout as layout_of  # noqa: E402
import yuan  # noqa: E402
from families import build  # noqa: E402
from megatron_layout import Layout  # noqa: E402

PLAIN = dict(vocab=24, with_rng=False)


def save(model, name):
    model.save_pretrained(HERE / name / "hf")
    (HERE / name / "hf" / "generation_config.json").unlink(missing_ok=True)


def write(weights, name, layouts):
    for folder, layout in layouts.items():
        layout_of.write(weights, HERE / name / folder, layout)


def main():
    for folder in HERE.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    torch.manual_seed(3)
    transformers.logging.disable_progress_bar()

    model = build(transformers.GPT2Config(
        vocab_size=24, n_positions=8, n_embd=16, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
        torch.float16)
    save(model, "gpt2")
    write(layout_of.from_gpt2(model), "gpt2", {
        "v0-tp2": Layout(version=None, spelling="v1", tp=2, **PLAIN),
        "v1-tp2": Layout(version=1.0, spelling="v1", tp=2, **PLAIN),
        "v2-pp2": Layout(version=2.0, spelling="v1", pp=2, **PLAIN),
        "v3-pp2": Layout(spelling="norm", pp=2, vocab=24, with_optimizer=True),
        "core-tp2": Layout(style="core-local", tp=2, release=True, **PLAIN)})

    model = build(transformers.LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=4, max_position_embeddings=8,
        bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-5, tie_word_embeddings=False),
        torch.bfloat16)
    save(model, "llama")
    write(layout_of.from_llama(model), "llama", {
        "tp2": Layout(spelling="norm", tp=2, **PLAIN),
        "core-te-pp2-vp2": Layout(style="core-te", pp=2, vp=2, **PLAIN)})

    model = build(transformers.BloomConfig(
        vocab_size=24, hidden_size=16, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2,
        pad_token_id=3), torch.float16)
    save(model, "bloom")
    weights = layout_of.from_bloom(model)
    write(weights, "bloom", {"tp2": Layout(tp=2, **PLAIN)})
    layout_of.write_deepspeed(weights, HERE / "bloom" / "deepspeed-tp2", Layout(tp=2, **PLAIN))

    weights = yuan.random_weights(random.Random(3), layers=4, heads=4, head_dim=4, ffn=24, vocab=24,
                                  dtype=torch.bfloat16)
    yuan.write_hugging_face(weights, HERE / "yuan" / "hf", container="safetensors", inv_freq=False)
    write(weights, "yuan", {
        "pp3": Layout(pp=3, blocks=(1, 2, 1), **PLAIN),
        "merged-tp2": Layout(tp=2, tied_copy_at_pp1=True, stage_in_name=True, **PLAIN)})


if __name__ == "__main__":
    main()
