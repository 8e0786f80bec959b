"""Writes rope.json: rotary frequencies, cosines and sines as transformers computes them, and
bf16.json: the cosines and sines that a table in BF16 has, as Yuan 2.0 was trained.

    python tests/golden/rope/make.py        (torch 2.13, transformers 5.23)
"""
import json
import pathlib

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

HEAD_DIM = 16
LONG = [1.0 + 0.5 * i for i in range(HEAD_DIM // 2)]
SHORT = [1.0 + 0.03125 * i for i in range(HEAD_DIM // 2)]

# name, max_position_embeddings, rope_theta, rope_parameters, sequence lengths
CASES = [
    ("default", 64, 10000.0, {"rope_type": "default"}, [8, 40]),
    ("default_theta", 8192, 500000.0, {"rope_type": "default"}, [5000]),
    ("linear", 64, 10000.0, {"rope_type": "linear", "factor": 3.0}, [8, 100]),
    ("dynamic", 64, 10000.0, {"rope_type": "dynamic", "factor": 2.5}, [8, 64, 65, 150]),
    ("llama3", 512, 500000.0,
     {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 64}, [8, 300]),
    ("yarn", 256, 10000.0,
     {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, [8, 200]),
    ("yarn_all_keys", 320, 1000000.0,
     {"rope_type": "yarn", "factor": 5.0, "original_max_position_embeddings": 64,
      "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.707, "mscale_all_dim": 1.2,
      "truncate": False}, [200]),
    ("yarn_attention_factor", 256, 10000.0,
     {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
      "attention_factor": 1.375}, [100]),
    ("longrope", 256, 10000.0,
     {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG,
      "original_max_position_embeddings": 64}, [8, 64, 65, 200]),
    ("longrope_factor", 256, 10000.0,
     {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": 16.0,
      "original_max_position_embeddings": 64}, [200]),
]


BF16_POSITIONS = [0, 1, 2, 3, 100, 255, 256, 257, 258, 259, 511, 513, 1023, 2049, 4095, 8191]


def write_bf16():
    """torch rounds to BF16 after each step by itself when its tensors are BF16."""
    out = []
    for head_dim in (6, 64, 128):
        frequency = (1.0 / 10000.0 ** (torch.arange(0, head_dim, 2).float() / head_dim)).bfloat16()
        positions = torch.arange(8192).bfloat16()
        angle = positions[:, None] * frequency[None, :]
        rows = torch.cat([angle.cos(), angle.sin()], 1)
        out.append({"head_dim": head_dim, "positions": BF16_POSITIONS,
                    "cos": [angle.cos()[p].tolist() for p in BF16_POSITIONS],
                    "sin": [angle.sin()[p].tolist() for p in BF16_POSITIONS],
                    "distinct_of_4096": len(torch.unique(rows[:4096], dim=0)),
                    "distinct_of_8192": len(torch.unique(rows, dim=0))})
    path = pathlib.Path(__file__).with_name("bf16.json")
    path.write_text("[\n" + ",\n".join(json.dumps(c) for c in out) + "\n]\n")


def main():
    write_bf16()
    out = []
    for name, max_positions, theta, parameters, lengths in CASES:
        for length in lengths:
            config = LlamaConfig(hidden_size=HEAD_DIM, num_attention_heads=1, head_dim=HEAD_DIM,
                                 max_position_embeddings=max_positions,
                                 rope_parameters={"rope_theta": theta, **parameters})
            rope = LlamaRotaryEmbedding(config)
            cos, sin = rope(torch.zeros(1, 1, 1), torch.arange(length)[None])
            rows = sorted({0, 1, length // 2, length - 1})
            half = HEAD_DIM // 2
            out.append({
                "name": name, "head_dim": HEAD_DIM, "max_position_embeddings": max_positions,
                "rope_theta": theta, "rope_scaling": parameters, "length": length,
                "inv_freq": rope.inv_freq.tolist(), "attention_scaling": rope.attention_scaling,
                "positions": rows,
                "cos": [cos[0, r, :half].tolist() for r in rows],
                "sin": [sin[0, r, :half].tolist() for r in rows],
            })
    path = pathlib.Path(__file__).with_name("rope.json")
    path.write_text("[\n" + ",\n".join(json.dumps(c) for c in out) + "\n]\n")


main()
