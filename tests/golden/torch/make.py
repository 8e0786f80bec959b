"""Writes the torch files beside this script with real torch, and what torch reads back from them.

python tests/golden/torch/make.py

expected.json: file -> tensor name -> [torch dtype, shape, CRC-32 of the contiguous bytes].
"""

import argparse
import collections
import enum
import io
import json
import os
import pathlib
import pickle
import pickletools
import random
import re
import sys
import tempfile
import types
import warnings
import zlib

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
warnings.simplefilter("ignore")
torch.manual_seed(1)


class ModelType(enum.Enum):
    encoder_or_decoder = 1


# As Megatron pickles it.
ModelType.__module__ = "megatron.core.enums"
for _name in ("megatron", "megatron.core", "megatron.core.enums"):
    sys.modules[_name] = types.ModuleType(_name)
sys.modules["megatron.core.enums"].ModelType = ModelType


def fill(dtype, shape):
    n = int(np.prod(shape)) if shape else 1
    if dtype.is_floating_point:
        return torch.linspace(-4, 4, n).to(dtype).reshape(shape)
    if dtype == torch.bool:
        return (torch.arange(n) % 3 == 0).reshape(shape)
    return torch.arange(n).to(dtype).reshape(shape)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
          torch.int16, torch.int8, torch.uint8, torch.bool]
NEW_DTYPES = [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64]


def every_shape(dtypes):
    out = {}
    for dtype in dtypes:
        name = str(dtype).split(".")[1]
        out[f"{name}.scalar"] = fill(dtype, ())
        out[f"{name}.vector"] = fill(dtype, (7,))
        out[f"{name}.rank4"] = fill(dtype, (2, 1, 3, 2))
        out[f"{name}.empty"] = fill(dtype, (0, 3))
        out[f"{name}.strided"] = fill(dtype, (4, 6))[1:, ::2]
    return out


def flatten(value, prefix=""):
    if isinstance(value, torch.Tensor):
        yield prefix, value.detach()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, (list, tuple)):
        for key, item in enumerate(value):
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))


def crc32(tensor):
    flat = tensor.contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().tobytes()) if flat.numel() else 0


def views():
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "base": base,
        "tied": base,
        "transposed": base.t(),
        "column": base[:, 2],
        "block": base[1:3, 2:5],
        "row": base[2],
        "expanded": base[0, :1].expand(3, 4),
        "scalar": base[3, 5],
        "permuted": base.reshape(2, 2, 6).permute(2, 0, 1),
    }


def nested():
    return {
        "model": {
            "embed": {"weight": fill(torch.bfloat16, (3, 4))},
            "layers": [{"weight": fill(torch.float16, (2, 2))}, {"weight": fill(torch.float16, (2, 3))}],
            "pair": (fill(torch.int8, (2,)), None),
        },
        7: {"exp_avg": fill(torch.float32, (5,))},
        "iteration": 1000,
        "note": "héllo ☃",
    }


def module():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    return net.state_dict()


def parameters():
    plain = torch.nn.Parameter(fill(torch.float32, (2, 3)))
    marked = torch.nn.Parameter(fill(torch.float32, (4,)), requires_grad=False)
    marked.tensor_model_parallel = True  # makes torch pickle it with _rebuild_parameter_with_state
    attributes = fill(torch.float32, (3,))
    attributes.partition_dim = 0  # and this one through _rebuild_from_type_v2
    return collections.OrderedDict(plain=plain, marked=marked, attributes=attributes,
                                   buffer=torch.nn.Buffer(fill(torch.float16, (2,))))


def megatron():
    random.seed(3)
    args = argparse.Namespace(
        num_layers=2, hidden_size=8, lr=1.5e-4, params_dtype=torch.bfloat16, fp16=False,
        vocab_file=None, pipeline_blocks=[1, 1], model_type=ModelType.encoder_or_decoder,
        path=pathlib.PurePosixPath("a/b"), big=2**100, negative=-(2**70), data=b"\x00\xff\x80",
        names={"x", "y"}, device=torch.device("cpu"), size=torch.Size([2, 3]))
    return {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": 2**31 + 5,
        "model": {"language_model": {"embedding": {"word_embeddings": {"weight": fill(torch.float16, (4, 8))}},
                                     "encoder": collections.OrderedDict(
                                         {"layers.0.weight": fill(torch.float16, (8, 8)),
                                          "layers.0._extra_state": None})}},
        "rng_state": [{"random_rng_state": random.getstate(),
                       "np_rng_state": np.random.RandomState(1).get_state(),
                       "torch_rng_state": torch.arange(16, dtype=torch.uint8),
                       "stream": io.BytesIO(b"abc")}],
        "optimizer": {torch.float32: fill(torch.float32, (2,))},
    }


expected = {}


def save(name, value, note=True, **options):
    torch.save(value, HERE / name, **options)
    if note:
        expected[name] = {key: [str(tensor.dtype).split(".")[1], list(tensor.shape), crc32(tensor)]
                          for key, tensor in flatten(value)}


save("dtypes.pt", every_shape(DTYPES))
save("new_dtypes.pt", every_shape(NEW_DTYPES))
save("views.pt", views())
save("nested.pt", nested())
save("module.pt", module())
save("parameters.pt", parameters())
save("megatron.pt", megatron())
del expected["megatron.pt"]["optimizer.torch.float32"]  # its key is no text
# The third pickle of the stream, behind the magic number, the protocol and the system record.
stream = io.BytesIO()
torch.save(megatron(), stream, _use_new_zipfile_serialization=False)
stream.seek(0)
for _ in range(3):
    pickle.load(stream)
start = stream.tell()
for _code, _argument, position in pickletools.genops(stream):
    pass
(HERE / "megatron.legacy.main.pkl").write_bytes(stream.getvalue()[start:stream.tell()])
save("no_tensors.pt", {"a": 1, "b": [None, True]})
row = torch.arange(1200, dtype=torch.float32)
save("many.pt", {f"t{i}": row[i] for i in range(1200)})  # two batches of SETITEMS, one storage

for name, value in [("dtypes", every_shape(DTYPES)), ("views", views()), ("nested", nested()),
                    ("module", module())]:
    save(f"{name}.legacy.bin", value, _use_new_zipfile_serialization=False)

save("protocol4.pt", nested(), pickle_protocol=4)
save("ünï.côdé.v2.pt", module())
os.replace(HERE / "ünï.côdé.v2.pt", HERE / "renamed.pt")
expected["renamed.pt"] = expected.pop("ünï.côdé.v2.pt")
buffer = io.BytesIO()
torch.save(module(), buffer)
(HERE / "buffer.pt").write_bytes(buffer.getvalue())
expected["buffer.pt"] = {key: [str(t.dtype).split(".")[1], list(t.shape), crc32(t)]
                         for key, t in flatten(torch.load(HERE / "buffer.pt", weights_only=True))}

# A storage of more than 4 GiB and three behind it. The file is a sparse one; what is kept are its
# bytes that are not zero, and where torch's own reader finds the storages.
large = {"before": torch.empty(3), "large": torch.empty(2**32 + 100, dtype=torch.uint8),
         "behind": torch.empty(2, 2), "last": torch.empty(5, dtype=torch.int64)}
with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory) / "large.pt"
    with torch.serialization.skip_data():
        torch.save(large, path)
    runs = []
    with open(path, "rb") as file:
        position = 0
        while True:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), position, os.SEEK_HOLE)
            data = os.pread(file.fileno(), end - position, position)
            runs += [[position + run.start(), run.group().hex()]
                     for run in re.finditer(rb"[^\0](?:[^\0]|\0{1,40}(?=[^\0]))*", data)]
            position = end
    reader = torch._C.PyTorchFileReader(str(path))
    (HERE / "large.json").write_text(json.dumps(
        {"size": path.stat().st_size, "runs": runs,
         "offsets": {key: reader.get_record_offset(f"data/{i}") for i, key in enumerate(large)}},
        indent=0) + "\n")

# What llmctl refuses, each for its own reason.
save("complex.pt", {"freqs_cis": torch.ones(2, dtype=torch.complex64)}, note=False)
save("sparse.pt", {"w": torch.eye(3).to_sparse()}, note=False)
save("quantized.pt", {"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 2, torch.qint8)}, note=False)
save("meta.pt", {"w": torch.ones(3, device="meta")}, note=False)
save("whole_module.pt", torch.nn.Linear(2, 2), note=False)
save("tensor.pt", torch.ones(2), note=False)
save("protocol1.pt", {"w": torch.ones(2)}, note=False, pickle_protocol=1)
torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(HERE / "torchscript.pt"))

# The oracle must agree with itself after a round trip.
for name, tensors in expected.items():
    back = dict(flatten(torch.load(HERE / name, weights_only=False)))
    for key, (dtype, shape, digest) in tensors.items():
        assert crc32(back[key].detach()) == digest, (name, key)

(HERE / "expected.json").write_text("{\n" + ",\n".join(
    f'"{name}": {json.dumps(tensors, ensure_ascii=False)}' for name, tensors in expected.items()) + "\n}" + "\n")
