"""The straightforward way to reshard a Megatron or Yuan 2.0 checkpoint: load every stage, cut or join,
save. What `llmctl reshard` is timed beside; prints seconds and peak memory as one line of JSON.

    python3 tests/bench/reshard_torch.py SRC DST --tp 8 [--pp 1]

For checkpoints of the legacy names (language_model.encoder...), version 2.0 or later, tied head.
"""
import argparse
import json
import re
import resource
import time
from pathlib import Path

import torch

ROWS = ("word_embeddings.weight", "query_key_value.weight", "query_key_value.bias", "get_value.weight",
        "get_query_key.weight", "dense_h_to_4h.weight", "dense_h_to_4h.bias")
COLUMNS = ("dense.weight", "dense_4h_to_h.weight")


def join(name, parts, gated):
    if len(parts) == 1:
        return parts[0]
    if name.endswith(COLUMNS):
        return torch.cat(parts, 1)
    if not name.endswith(ROWS):
        return parts[0]
    if gated and "dense_h_to_4h" in name:
        halves = [part.chunk(2) for part in parts]
        return torch.cat([h[0] for h in halves] + [h[1] for h in halves])
    return torch.cat(parts)


def cut(name, whole, rank, tp, gated):
    if tp == 1:
        return whole
    if name.endswith(COLUMNS):
        return whole.chunk(tp, 1)[rank].clone()
    if not name.endswith(ROWS):
        return whole.clone()
    if gated and "dense_h_to_4h" in name:
        return torch.cat([half.chunk(tp)[rank] for half in whole.chunk(2)])
    return whole.chunk(tp)[rank].clone()


def load(step):
    """args, iteration, {stage: {tensor rank: language_model}} of all files."""
    stages = {}
    for path in sorted(step.glob("mp_rank_*/model_optim_rng.pt")):
        match = re.fullmatch(r"mp_rank_(\d+)(?:_(\d+))?", path.parent.name)
        content = torch.load(path, map_location="cpu", weights_only=False)
        stages.setdefault(int(match[2] or 0), {})[int(match[1])] = content["model"]["language_model"]
    return content["args"], content["iteration"], stages


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--tp", type=int, required=True)
    parser.add_argument("--pp", type=int, default=1)
    flags = parser.parse_args()
    start = time.monotonic()

    tracker = (flags.source / "latest_checkpointed_iteration.txt").read_text()
    name = tracker if tracker == "release" else f"iter_{int(tracker):07d}"
    args, iteration, stages = load(flags.source / name)
    gated = bool(getattr(args, "swiglu", False))
    embedding, encoder, offset = {}, {}, 0
    for stage in sorted(stages):
        ranks = [stages[stage][rank] for rank in sorted(stages[stage])]
        for key in ranks[0].get("embedding", {}):
            embedding[key] = join(f"{key}.weight", [r["embedding"][key]["weight"] for r in ranks], gated)
        count = 0
        for key in ranks[0]["encoder"]:
            whole = join(key, [r["encoder"][key] for r in ranks], gated)
            match = re.match(r"layers\.(\d+)\.(.*)", key)
            if match:
                count = max(count, int(match[1]) + 1)
                encoder[f"layers.{int(match[1]) + offset}.{match[2]}"] = whole
            else:
                encoder[key] = whole
        offset += count
    loaded = time.monotonic()

    args.tensor_model_parallel_size, args.pipeline_model_parallel_size = flags.tp, flags.pp
    share = offset // flags.pp
    for stage in range(flags.pp):
        for rank in range(flags.tp):
            part = {}
            for key, whole in encoder.items():
                match = re.match(r"layers\.(\d+)\.(.*)", key)
                if match and int(match[1]) // share == stage:
                    part[f"layers.{int(match[1]) - stage * share}.{match[2]}"] = cut(
                        key, whole, rank, flags.tp, gated)
                elif not match and stage == flags.pp - 1:
                    part[key] = whole
            model = {"language_model": {"encoder": part}}
            if stage == 0:
                model["language_model"]["embedding"] = {
                    key: {"weight": cut(f"{key}.weight", whole, rank, flags.tp, gated)}
                    for key, whole in embedding.items()}
            elif stage == flags.pp - 1:
                model["word_embeddings_for_head"] = {"weight": cut(
                    "word_embeddings.weight", embedding["word_embeddings"], rank, flags.tp, gated)}
            folder = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if flags.pp > 1 else "")
            path = flags.destination / name / folder / "model_optim_rng.pt"
            path.parent.mkdir(parents=True)
            torch.save({"args": args, "checkpoint_version": 3.0, "iteration": iteration,
                        "model": model}, path)
    (flags.destination / "latest_checkpointed_iteration.txt").write_text(tracker)
    done = time.monotonic()
    print(json.dumps({
        "seconds": round(done - start, 2), "seconds_loading": round(loaded - start, 2),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
