"""Trained models of the test data set, as they are and re-expressed in other families.

An exact re-expression makes a trained model of a family that has none here: LLaMA with zero QKV
biases is a Qwen2, LLaMA whose K and V rows are repeated for each query head is an MHA LLaMA, and
LLaMA as it stands is a Mistral. Greedy ids must not change.
"""
import json
import sys

import torch
from safetensors.torch import load_file, save_file

from harness import TEST_DATA, Checks, about, llmctl, llmctl_json

MODELS = TEST_DATA / "models"


def greedy(model, case, *extra):
    result = llmctl_json("run", model, "--token-ids", ",".join(map(str, case["input_ids"])),
                         "--max-new-tokens", len(case["greedy_ids"]), "--ignore-eos", *extra)
    return result["ids"]


def as_qwen2(config, tensors):
    config |= dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"], use_sliding_window=False)
    for name in [n for n in tensors if n.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))]:
        tensors[name.replace("weight", "bias")] = torch.zeros(tensors[name].shape[0])


def as_mha(config, tensors):
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    config["num_key_value_heads"] = heads
    for name in [n for n in tensors if n.endswith(("k_proj.weight", "v_proj.weight"))]:
        rows = tensors[name]
        grid = rows.reshape(kv, -1, rows.shape[1])
        tensors[name] = grid.repeat_interleave(heads // kv, 0).reshape(-1, rows.shape[1]).contiguous()


def as_mistral(config, _tensors):
    config |= dict(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=None)


EXPRESSIONS = {"qwen2": as_qwen2, "mha": as_mha, "mistral": as_mistral}


def cases_of(name, limit):
    cases = json.loads((MODELS / name / "golden.json").read_text())
    return [case for case in cases if case["greedy_ids"]][:limit]


def check_model(name, sizes, limit=4):
    def check(_rng, folder):
        source = MODELS / name
        for tp in sizes:
            llmctl("convert", source, folder / "ft", "--to", "ft", "--tp", tp)
            for case in cases_of(name, limit):
                for model in (source, folder / "ft" / f"{tp}-gpu"):
                    with about(f"{model} tp={tp} {case['prompt']!r}"):
                        assert greedy(model, case, "--tp", tp) == case["greedy_ids"]
    return check


def check_expression(name, kind, sizes):
    def check(_rng, folder):
        config = json.loads((MODELS / name / "config.json").read_text())
        tensors = load_file(MODELS / name / "model.safetensors")
        EXPRESSIONS[kind](config, tensors)
        source = folder / "hf"
        source.mkdir()
        (source / "config.json").write_text(json.dumps(config))
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
        for tp in sizes:
            llmctl("convert", source, folder / "ft", "--to", "ft", "--tp", tp)
            for case in cases_of(name, 3):
                for model in (source, folder / "ft" / f"{tp}-gpu"):
                    with about(f"{model} tp={tp} {case['prompt']!r}"):
                        assert greedy(model, case, "--tp", tp) == case["greedy_ids"]
    return check


def main():
    if not MODELS.exists():
        print(f"SKIPPED: {MODELS} is not there (LLMCTL_TEST_DATA)")
        sys.exit(0)
    checks = Checks()
    checks.run("gpt2-nano-sort", check_model("gpt2-nano-sort", (1, 3), limit=50))
    checks.run("opt-tinystories-char59", check_model("opt-tinystories-char59", (1, 4)))
    # The first is 172 wide, which 8 does not divide.
    for name, sizes in (("llama-stories260K", (1, 2, 4)), ("llama-babyllama-tok105", (1, 4, 8))):
        checks.run(name, check_model(name, sizes))
        for kind in EXPRESSIONS:
            checks.run(f"{name} as {kind}", check_expression(name, kind, sizes[1:]))
    checks.finish()


if __name__ == "__main__":
    main()
