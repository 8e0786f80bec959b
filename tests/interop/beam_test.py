"""Beam search of `llmctl run` held against transformers' generate(num_beams=...), and its diversity
against FasterTransformer's rule written down again."""

import torch
import transformers

from harness import GOLDEN, Checks, about, llmctl_json

NEW_TOKENS = 12


def run(model, prompt, *extra):
    """[(ids, score)], best first, by llmctl."""
    result = llmctl_json("run", model, "--token-ids", ",".join(map(str, prompt)),
                         "--max-new-tokens", NEW_TOKENS, "--logprobs", 0, *extra)
    return [(r["ids"], r["score"]) for r in [result, *result.get("others", [])]]


@torch.no_grad()
def reference(model, prompt, eos, **options):
    """The same by transformers."""
    out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                         max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=eos, pad_token_id=0,
                         return_dict_in_generate=True, output_scores=True, **options)
    results = []
    for row, score in zip(out.sequences.tolist(), out.sequences_scores.tolist()):
        ids = row[len(prompt):]
        ends = [i for i, token in enumerate(ids) if token in eos]
        results.append((ids[:ends[0] + 1] if ends else ids, score))
    return results


def assert_beams(actual, expected):
    """Equal scores; equal ids where no other score is as good as equal."""
    assert len(actual) == len(expected), f"{actual}, expected {expected}"
    for i, ((ids, score), (want, want_score)) in enumerate(zip(actual, expected)):
        assert abs(score - want_score) < 2e-4 * max(1, abs(want_score)), f"{actual}, expected {expected}"
        close = any(j != i and abs(other - want_score) < 1e-4 for j, (_, other) in enumerate(expected))
        assert close or ids == want, f"beam {i}: {ids}, expected {want}: {actual}, {expected}"


def check_against_generate(rng, model, path, vocab):
    for _ in range(6):
        prompt = [rng.randrange(3, vocab) for _ in range(rng.randint(1, 14))]
        eos = sorted(rng.sample(range(vocab), rng.choice((1, 2, vocab // 6))))
        beams = rng.choice((2, 3, 4, 7))
        early = rng.choice((("heuristic", False), ("always", True), ("never", "never")))
        penalty = rng.choice((0.0, 0.6, 1.0, 2.0, -1.0))
        options = dict(num_beams=beams, length_penalty=penalty, early_stopping=early[1],
                       num_return_sequences=rng.randint(1, beams))
        flags = ["--ignore-eos", "--stop-ids", ",".join(map(str, eos)), "--beams", beams,
                 "--length-penalty", penalty, "--early-stopping", early[0],
                 "--num-return-sequences", options["num_return_sequences"]]
        if rng.random() < 0.4:
            options["repetition_penalty"] = 1.3
            flags += ["--repetition-penalty", 1.3]
        if rng.random() < 0.4:
            options["min_new_tokens"] = 4
            flags += ["--min-new-tokens", 4]
        with about(f"{prompt} eos={eos} {options}"):
            expected = reference(model, prompt, eos, **options)
            first = None
            for grid in ((), ("--tp", 2), ("--pp", 2)):
                with about(f"{grid}"):
                    actual = run(path, prompt, *flags, *grid)
                    assert_beams(actual, expected)
                    first = first or actual
                    assert actual == first, "depends on tp or pp"


def check_golden(case):
    def check(rng, folder):
        path = GOLDEN / "families" / case
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32,
                                                                  attn_implementation="eager").eval()
        check_against_generate(rng, model, path, model.config.vocab_size)
    return check


@torch.no_grad()
def diverse(model, prompt, beams, rate):
    """FasterTransformer's rule: the i-th best of a beam's continuations gets rate * i while the
    beams are chosen; what accumulates is without it. No stop id."""
    state = [([], 0.0)]
    for _ in range(NEW_TOKENS):
        rows = model(torch.tensor([prompt + ids for ids, _ in state])).logits[:, -1].log_softmax(-1)
        candidates = []
        for (ids, score), row in zip(state, rows):
            best = row.topk(min(2 * beams, row.numel()))
            for i, (value, token) in enumerate(zip(best.values.tolist(), best.indices.tolist())):
                candidates.append((score + value + rate * i, score + value, ids + [token]))
        candidates.sort(key=lambda c: -c[0])
        state = [(ids, score) for _, score, ids in candidates[:beams]]
    # The last step's first candidates, in order of what they have accumulated.
    return sorted(((ids, score / NEW_TOKENS) for ids, score in state), key=lambda r: -r[1])


def check_diversity(rng, folder):
    path = GOLDEN / "families" / "llama"
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    changed = 0
    for rate in (-0.05, -0.3, -1.5, 0.2):
        prompt = [rng.randrange(3, model.config.vocab_size) for _ in range(5)]
        with about(f"{prompt} {rate}"):
            flags = ["--ignore-eos", "--beams", 4, "--num-return-sequences", 4]
            actual = run(path, prompt, *flags, "--beam-diversity", rate)
            assert_beams(actual, diverse(model, prompt, 4, rate))
            changed += actual != run(path, prompt, *flags)
    assert changed, "the rate had no effect"


def main():
    checks = Checks()
    for case in ("llama", "gpt2", "bloom", "qwen2", "gpt_neox"):
        checks.run(f"beams {case}", check_golden(case))
    checks.run("diversity", check_diversity)
    checks.finish()


if __name__ == "__main__":
    main()
