"""Writes a tiny sharded model as transformers saved torch weights: torch.save shards and an index."""
import json
import pathlib
import shutil

import torch

here = pathlib.Path(__file__).resolve().parent
folder = here / "torch-sharded"
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir()
shards = {
    "pytorch_model-00001-of-00002.bin": {
        "embed.weight": torch.arange(12, dtype=torch.float16).reshape(4, 3),
        "norm.weight": torch.ones(3, dtype=torch.float16),
    },
    "pytorch_model-00002-of-00002.bin": {
        "head.weight": torch.arange(12, dtype=torch.float16).reshape(3, 4).t(),
    },
}
for name, tensors in shards.items():
    torch.save(tensors, folder / name)
index = {
    "metadata": {"total_size": sum(t.nbytes for s in shards.values() for t in s.values())},
    "weight_map": {tensor: name for name, tensors in shards.items() for tensor in tensors},
}
(folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
(folder / "config.json").write_text('{"model_type": "none"}\n')
