"""Torch loads what llmctl's torch writer writes, and zipfile finds nothing wrong with it.

The files are tests/golden/torch_writer, which the C++ tests hold against the writer byte for byte.
"""

import os
import pathlib
import sys
import types
import zipfile

import numpy as np
import torch

ROOT = pathlib.Path(os.environ.get("LLMCTL_SOURCE_DIR", pathlib.Path(__file__).parents[2]))
GOLDEN = ROOT / "tests" / "golden"


def pattern(index, dtype, size):
    value = np.arange(size, dtype=np.int64) * 7 + index
    return (value % (2 if dtype == torch.bool else 251)).astype(np.uint8).tobytes()


def raw(tensor):
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def check_state_dict():
    path = GOLDEN / "torch_writer" / "state_dict.pt"
    assert zipfile.ZipFile(path).testzip() is None
    for options in (dict(weights_only=True), dict(weights_only=True, mmap=True), dict(weights_only=False)):
        state = torch.load(path, **options)
        assert len(state) == 15 * 4, len(state)
        for index, (name, tensor) in enumerate(state.items()):
            dtype, kind = name.split(".")
            assert str(tensor.dtype) == "torch." + dtype, name
            assert tuple(tensor.shape) == {"scalar": (), "vector": (7,), "rank4": (2, 1, 3, 2), "empty": (0, 3)}[kind]
            assert tensor.is_contiguous() and not tensor.requires_grad
            assert raw(tensor) == pattern(index, tensor.dtype, tensor.numel() * tensor.element_size()), name


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) == type(b) and len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "getvalue"):
        return a.getvalue() == b.getvalue()
    return type(a) == type(b) and a == b


def check_megatron():
    import enum

    class ModelType(enum.Enum):
        encoder_or_decoder = 1

    for name in ("megatron", "megatron.core", "megatron.core.enums"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["megatron.core.enums"].ModelType = ModelType
    path = GOLDEN / "torch_writer" / "megatron.pt"
    assert zipfile.ZipFile(path).testzip() is None
    before = torch.load(GOLDEN / "torch" / "megatron.pt", weights_only=False)
    after = torch.load(path, weights_only=False)
    assert before["args"].num_layers == 2 and after["args"].num_layers == 4
    before["args"].num_layers = 4
    assert list(vars(before["args"])) == list(vars(after["args"]))
    for key, value in vars(before["args"]).items():
        # torch.Size is read as the tuple it is.
        expected = tuple(value) if isinstance(value, torch.Size) else value
        assert same(expected, getattr(after["args"], key)), key
    del before["args"], after["args"]
    # An OrderedDict comes back as a dict.
    assert same(before, after)


check_state_dict()
check_megatron()
print("torch reads what llmctl writes")
