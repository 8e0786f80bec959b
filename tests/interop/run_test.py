"""`llmctl run` held against transformers: logits and greedy ids of golden and fresh random models."""
import json

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer

from safetensors.torch import save_file

from families import (CONTAINERS, FAMILIES, assert_same_bits, build, minimal_config, new_yuan,
                      read_safetensors, save, tp_sizes)
from harness import GOLDEN, SOURCE, Checks, about, llmctl, llmctl_json

NEW_TOKENS = 24


def run(model, ids, folder, *extra, new_tokens=NEW_TOKENS):
    """(logits of the prompt [tokens, vocab], greedy ids) by llmctl."""
    out = folder / "logits.npy"
    out.unlink(missing_ok=True)
    result = llmctl_json("run", model, "--token-ids", ",".join(map(str, ids)), "--max-new-tokens",
                         new_tokens, "--logits-file", out, *extra)
    return np.load(out), result["ids"]


def assert_close(actual, expected, tolerance=1e-4):
    """Within `tolerance` of the range of the reference's logits."""
    assert actual.dtype == np.float32 and actual.shape == expected.shape, (actual.dtype, actual.shape)
    error = np.abs(actual - expected).max()
    spread = expected.max() - expected.min()
    assert error <= tolerance * spread, f"largest error {error} of a range of {spread}"


def assert_greedy(actual, expected, gaps):
    """The same ids, up to the first step that transformers itself decides by a hair."""
    clear = next((i for i, gap in enumerate(gaps) if gap < 1e-3), len(expected))
    assert actual[:clear] == expected[:clear], f"{actual}, expected {expected}"


@torch.no_grad()
def reference(model, ids, new_tokens=NEW_TOKENS):
    """(logits, greedy ids, how clear each step was as a part of the logits' range) by transformers."""
    logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    sequence, gaps = list(ids), []
    for _ in range(new_tokens):
        row = model(torch.tensor([sequence]), use_cache=False).logits[0, -1]
        best = torch.topk(row, 2)
        gaps.append(float((best.values[0] - best.values[1]) / (row.max() - row.min())))
        sequence.append(int(best.indices[0]))
        if sequence[-1] == model.config.eos_token_id:
            break
    return logits.numpy(), sequence[len(ids):], gaps


def check_golden(case):
    def check(rng, folder):
        source = GOLDEN / "families" / case
        golden = json.loads((source / "golden.json").read_text())
        config = json.loads((source / "config.json").read_text())
        tolerance = golden.get("tolerance", 1e-4)
        heads = config.get("n_head") or config["num_attention_heads"]
        layers = config.get("n_layer") or config["num_hidden_layers"]
        grid = [(tp, pp) for tp in (1, 2, 4) if heads % tp == 0 for pp in (1, 2) if layers >= pp]
        for tp, pp in grid:
            for recorded in golden["cases"]:
                with about(f"tp={tp} pp={pp}"):
                    logits, ids = run(source, recorded["input_ids"], folder, "--tp", tp, "--pp", pp,
                                      new_tokens=64)
                    assert_close(logits, np.load(source / recorded["logits"]), tolerance)
                    assert ids == recorded["greedy_ids"], f"{ids}, expected {recorded['greedy_ids']}"
        # The same weights in other containers.
        for other in sorted(path.parent for path in source.glob("*/config.json")):
            for recorded in golden["cases"]:
                with about(other.name):
                    logits, ids = run(other, recorded["input_ids"], folder, new_tokens=64)
                    assert_close(logits, np.load(source / recorded["logits"]))
                    assert ids == recorded["greedy_ids"], f"{ids}, expected {recorded['greedy_ids']}"
    return check


def check_random(family):
    """A fresh model from Hugging Face files and from FasterTransformer files of another tp."""
    def check(rng, folder):
        config = FAMILIES[family](rng)
        model = build(config)
        source = folder / "hf"
        save(model, source, rng.choice(CONTAINERS), classic=rng.random() < 0.5)
        prompt = [rng.randrange(3, config.vocab_size) for _ in range(rng.randint(1, 20))]
        logits, greedy, gaps = reference(model, prompt)
        sizes = tp_sizes(config)
        layers = config.num_hidden_layers
        with about(f"prompt {prompt}, {config.to_diff_dict()}"):
            first_ids = None
            for tp in sizes:
                pp = rng.randint(1, min(2, layers))
                with about(f"HF tp={tp} pp={pp}"):
                    actual, ids = run(source, prompt, folder, "--tp", tp, "--pp", pp)
                    assert_close(actual, logits)
                    assert_greedy(ids, greedy, gaps)
                    first_ids = first_ids or ids
                    assert ids == first_ids, "greedy ids depend on tp or pp"
            saved = rng.choice(sizes)
            llmctl("convert", source, folder / "ft", "--to", "ft", "--tp", saved)
            for tp in sizes:
                with about(f"FT tp={saved} run at tp={tp}"):
                    actual, ids = run(folder / "ft" / f"{saved}-gpu", prompt, folder, "--tp", tp)
                    assert_close(actual, logits)
                    assert_greedy(ids, greedy, gaps)
    return check


def check_yuan(rng, folder):
    """Yuan 2.0 as published: torch shards, stored frequencies, a copy of the embedding as head."""
    heads = rng.choice((2, 4, 6))
    hidden = heads * rng.choice((4, 6, 8))
    groups = rng.choice([g for g in (1, 1, 2, 3) if hidden // 2 % g == 0])
    tied = rng.random() < 0.7
    config = dict(architectures=["YuanForCausalLM"], model_type="yuan", vocab_size=rng.randint(40, 130),
                  hidden_size=hidden, intermediate_size=heads * rng.randint(5, 20),
                  num_hidden_layers=rng.choice((1, 2, 3)), num_attention_heads=heads,
                  hidden_act="silu", max_position_embeddings=64, rms_norm_eps=1e-6,
                  tie_word_embeddings=tied, eos_token_id=2, eod_token=2, torch_dtype="float32")
    if groups > 1:
        config["lf_conv2d_group"] = groups
    model = new_yuan(config)
    stored = model.state_dict()
    for layer in range(config["num_hidden_layers"]):
        stored[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.zeros(hidden // heads // 2)
    if tied:
        stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    source = folder / "hf"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    if rng.random() < 0.5:
        torch.save(stored, source / "pytorch_model.bin")
    else:
        save_file(stored, source / "model.safetensors")
    prompt = [rng.randrange(3, config["vocab_size"]) for _ in range(rng.randint(1, 20))]
    with about(f"prompt {prompt}, {config}"):
        logits, greedy, gaps = reference(model, prompt)
        llmctl("convert", source, folder / "again", "--to", "hf")
        assert llmctl("diff", source, folder / "again", "--exact")
        written = read_safetensors(folder / "again")
        for name, tensor in model.state_dict().items():
            assert_same_bits(written[name], tensor, name)
        first_ids = None
        for path in (source, folder / "again"):
            for tp in [tp for tp in (1, 2, 3, 4) if heads % tp == 0]:
                pp = rng.randint(1, min(2, config["num_hidden_layers"]))
                with about(f"{path.name} tp={tp} pp={pp}"):
                    actual, ids = run(path, prompt, folder, "--tp", tp, "--pp", pp)
                    assert_close(actual, logits)
                    assert_greedy(ids, greedy, gaps)
                    first_ids = first_ids or ids
                    assert ids == first_ids, "greedy ids depend on tp or pp"
        # The precision of the angles is said, or follows the dtype; the flag has the last word.
        model.json["rope_precision"] = "megatron_bf16"
        rounded = reference(model, prompt, 0)[0]
        actual, _ = run(source, prompt, folder, "--rope-precision", "megatron_bf16", new_tokens=1)
        assert_close(actual, rounded, 1e-2)
        llmctl("convert", source, folder / "ft", "--to", "ft", expect=2)


def check_minimal(family):
    """Optional keys of config.json mean what transformers' defaults mean."""
    def check(rng, folder):
        config = FAMILIES[family](rng)
        model = build(config)
        save(model, folder / "hf", classic=True)
        left_out = minimal_config(folder / "hf")
        prompt = [rng.randrange(3, config.vocab_size) for _ in range(9)]
        with about(f"without {left_out}: {(folder / 'hf/config.json').read_text()}"):
            actual, _ = run(folder / "hf", prompt, folder, new_tokens=1)
            assert_close(actual, reference(model, prompt, 0)[0])
    return check


def check_sample(name):
    """The sample models: prompt to text, through tokenizer and BF16 or F16 weights."""
    def check(_rng, folder):
        source = SOURCE / "samples" / name
        tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, attn_implementation="eager").eval()
        llmctl("convert", source, folder / "ft", "--to", "ft", "--tp", 2)
        for prompt in ("Once upon a time", "Tom (a cat) said: \"Hello, Lily!\"", "One day,\n"):
            ids = tokenizer.encode(prompt).ids
            _, greedy, gaps = reference(model, ids)
            for path, tp in ((source, 1), (source, 4), (folder / "ft/2-gpu", 2)):
                with about(f"{path} tp={tp} {prompt!r}"):
                    result = llmctl_json("run", path, "--tp", tp, "--prompt", prompt,
                                         "--max-new-tokens", NEW_TOKENS)
                    assert result["prompt_ids"] == ids, f"{result['prompt_ids']}, expected {ids}"
                    assert_greedy(result["ids"], greedy, gaps)
                    assert result["text"] == tokenizer.decode(result["ids"])
    return check


def main():
    checks = Checks()
    for path in sorted((GOLDEN / "families").iterdir()):
        if (path / "golden.json").exists():
            checks.run(f"golden {path.name}", check_golden(path.name))
    for family in FAMILIES:
        checks.run(f"random {family}", check_random(family))
        checks.run(f"minimal {family}", check_minimal(family))
    for i in range(3):
        checks.run(f"random yuan {i}", check_yuan)
    for name in ("llama-stories", "bloom-stories"):
        checks.run(f"sample {name}", check_sample(name))
    checks.finish()


if __name__ == "__main__":
    main()
