#!/usr/bin/env python3
"""Writes what huggingface_opt_convert.py stores for opt-350m in place of its projections.

The script multiplies the embedding by the two projections in F32 and casts; this does the same in
torch and refuses unless the bytes have the SHA-256 that make.py recorded of the script's own files.

Usage: products.py. Needs torch and safetensors.
"""
import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
weights = load_file(HERE.parent / "families/opt-350m/model.safetensors")
embed, project_in, project_out = (
    weights[f"model.decoder.{name}.weight"] for name in ("embed_tokens", "project_in", "project_out"))
torch.set_num_threads(1)
for name, product in (("model.wte.bin", embed @ project_in.T),
                      ("model.lm_head.weight.bin", embed @ project_out)):
    for flag, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        data = product.to(dtype).contiguous().numpy().tobytes()
        recorded = json.loads((HERE / f"opt-350m.{flag}.tp1.json").read_text())["files"][name]
        if hashlib.sha256(data).hexdigest() != recorded[1]:
            sys.exit(f"{name} in {flag}: other bytes than the script's; torch sums in another order here")
        (HERE / "opt-350m" / f"{flag}.{name}").write_bytes(data)
