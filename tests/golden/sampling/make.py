"""Writes golden.json: what transformers' logits processors and warpers make of random logits.

    python tests/golden/sampling/make.py

Each case has logits, the ids before, the options, and the tokens that are kept with their
probabilities, in the order in which GenerationMixin._get_logits_processor applies the classes.
"""
import json
import random
from pathlib import Path

import torch
import transformers
from transformers.generation import logits_process as lp

VOCAB = 40


def round_f32(x):
    """The shortest decimals that are the same F32."""
    return float(f"{float(torch.tensor(x, dtype=torch.float32)):.9g}")


def make_case(rng, options):
    logits = [round_f32(rng.gauss(0, 3)) for _ in range(VOCAB)]
    prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))]
    generated = [rng.randrange(VOCAB) for _ in range(rng.randint(0, 9))]
    stops = [3, 7]
    if "bad_words" in options:
        # One that is about to be completed, one that is not, and one of a single token.
        history = prompt + generated
        options["bad_words"] = [history[-1:] + [5], [(history[-1] + 1) % VOCAB, 6], [9]]
        if len(history) > 1:
            options["bad_words"].append(history[-2:] + [11])
    processors = []
    if "repetition_penalty" in options:
        processors.append(lp.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if "bad_words" in options:
        processors.append(lp.NoBadWordsLogitsProcessor(options["bad_words"]))
    if "min_new_tokens" in options:
        processors.append(lp.MinNewTokensLengthLogitsProcessor(
            len(prompt), options["min_new_tokens"], torch.tensor(stops)))
    if "temperature" in options:
        processors.append(lp.TemperatureLogitsWarper(options["temperature"]))
    if "top_k" in options:
        processors.append(lp.TopKLogitsWarper(options["top_k"]))
    if "top_p" in options:
        processors.append(lp.TopPLogitsWarper(options["top_p"]))
    if "min_p" in options:
        processors.append(lp.MinPLogitsWarper(options["min_p"]))
    if "typical_p" in options:
        processors.append(lp.TypicalLogitsWarper(options["typical_p"]))
    ids = torch.tensor([prompt + generated])
    # F64, so that no token is kept or lost by a rounding.
    scores = torch.tensor([logits], dtype=torch.float64)
    for processor in processors:
        scores = processor(ids, scores)
    probabilities = scores.softmax(-1)[0].tolist()
    kept = {str(i): round(p, 9) for i, p in enumerate(probabilities) if p > 0}
    return {"logits": logits, "prompt": prompt, "generated": generated, "stop_ids": stops,
            "options": options, "kept": kept}


def main():
    rng = random.Random(5)
    wanted = [{}, {"temperature": 0.5}, {"temperature": 2.5}]
    for k in (1, 2, 7, 39, 40):
        wanted.append({"top_k": k})
    for p in (0.01, 0.3, 0.9, 0.999):
        wanted += [{"top_p": p}, {"min_p": p}, {"typical_p": p}]
    for penalty in (0.7, 1.3, 2.0):
        wanted.append({"repetition_penalty": penalty})
    for _ in range(4):
        wanted += [{"bad_words": None}, {"min_new_tokens": 5}]
    for _ in range(24):
        every = {"repetition_penalty": round(rng.uniform(0.6, 2), 2), "bad_words": None,
                 "min_new_tokens": rng.randint(1, 12), "temperature": round(rng.uniform(0.3, 3), 2),
                 "top_k": rng.randint(2, VOCAB), "top_p": round(rng.uniform(0.2, 0.99), 3),
                 "min_p": round(rng.uniform(0.001, 0.2), 3), "typical_p": round(rng.uniform(0.2, 0.99), 3)}
        wanted.append({name: value for name, value in every.items() if rng.random() < 0.6})
    cases = [make_case(rng, options) for options in wanted]
    target = Path(__file__).with_name("golden.json")
    lines = ",\n".join(json.dumps(case) for case in cases)
    target.write_text(f'{{"transformers": "{transformers.__version__}", "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
