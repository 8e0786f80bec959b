"""Writes the files of this folder and ../bad/{safetensors,hf-index,ini} with the real libraries.

Run from anywhere: python tests/golden/safetensors/make.py
"""
import json
import pathlib
import shutil
import struct

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file

here = pathlib.Path(__file__).resolve().parent
bad = here.parent / "bad"

DTYPES = {
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "F32": torch.float32,
    "U32": torch.uint32, "I32": torch.int32, "BF16": torch.bfloat16, "F16": torch.float16,
    "U16": torch.uint16, "I16": torch.int16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}
NAME = {dtype: name for name, dtype in DTYPES.items()}


def tensor(shape, dtype, seed):
    count = 1
    for size in shape:
        count *= size
    values = (torch.arange(count) * 7 + seed * 13) % 100
    if dtype is torch.bool:
        values = values % 2
    return values.to(torch.float32).to(dtype).reshape(shape) if dtype.is_floating_point \
        else values.to(dtype).reshape(shape)


def manifest(path, tensors):
    """The state dict's order, which the files do not show."""
    rows = [[name, NAME[t.dtype], list(t.shape)] for name, t in tensors.items()]
    path.write_text(json.dumps(rows, indent=1) + "\n")


def good():
    # Every dtype, ranks 0 to 4, empty tensors, names that need escapes, equal dtypes out of order.
    tensors = {}
    for seed, (name, dtype) in enumerate(sorted(DTYPES.items())):
        tensors[f"z.{name}"] = tensor((2, 3), dtype, seed)
        tensors[f"a.{name}"] = tensor((5,), dtype, seed + 1)
    tensors["scalar"] = tensor((), torch.float32, 3)
    tensors["empty"] = tensor((0, 3), torch.float32, 4)
    tensors["empty.half"] = tensor((4, 0), torch.float16, 4)
    tensors["rank4"] = tensor((1, 2, 1, 3), torch.bfloat16, 5)
    tensors['quote " back \\ slash / tab \t bell \x07 del \x7f'] = tensor((1,), torch.float32, 6)
    tensors["größe.层.\U0001f600"] = tensor((3,), torch.float32, 7)
    save_file(tensors, here / "all_dtypes.safetensors", metadata={"format": "pt"})
    manifest(here / "all_dtypes.tensors.json", tensors)

    # Shards: one tensor above the limit, one that fits exactly, names in no order.
    folder = here / "sharded"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tensors = {
        "model.layers.0.w": tensor((10, 10), torch.float32, 1),
        "model.embed": tensor((30, 10), torch.float32, 2),
        "model.layers.0.b": tensor((10,), torch.float16, 3),
        "lm_head": tensor((20, 10), torch.float16, 4),
        "größe \x7f": tensor((145,), torch.bfloat16, 5),
        "model.norm": tensor((3,), torch.float32, 6),
    }
    save_torch_state_dict(tensors, folder, max_shard_size=800, shared_tensors_to_discard=[])
    manifest(here / "sharded.tensors.json", tensors)
    # huggingface_hub leaves the index in state dict order; transformers' save_pretrained sorts it.
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    (folder / "config.json").write_text('{"model_type": "none"}\n')


def raw(header, data=b"", length=None, pad=True):
    text = header if isinstance(header, bytes) else header.encode()
    if pad:
        text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape="[2]", offsets="[0,8]"):
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


def bad_safetensors():
    folder = bad / "safetensors"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    d8, d16 = bytes(range(8)), bytes(range(16))
    a = '{"a":' + entry()
    files = {
        "header-above-limit": raw(a + "}", d8, length=100_000_001),
        "header-longer-than-file": raw(a + "}", d8, length=4096),
        "header-length-near-2-64": raw(a + "}", d8, length=2**64 - 8),
        "header-empty": struct.pack("<Q", 0) + d8,
        "header-starts-with-space": raw(" " + a + "}", d8),
        "header-is-array": raw("[1]", b""),
        "header-ends-with-newline": raw(a + "}\n", d8, pad=False),
        "header-ends-with-text": raw(a + "} x", d8),
        "header-cut": raw(a, d8),
        "hole": raw(a + ',"b":' + entry(offsets="[9,17]") + "}", d16 + b"\0"),
        "hole-at-start": raw('{"a":' + entry(offsets="[1,9]") + "}", d8 + b"\0"),
        "overlap": raw(a + ',"b":' + entry(offsets="[4,12]") + "}", d8 + d8[:4]),
        "same-bytes-twice": raw(a + ',"b":' + entry() + "}", d8),
        "trailing-byte": raw(a + "}", d8 + b"\0"),
        "data-cut": raw(a + "}", d8[:7]),
        "duplicate-name": raw(a + ',"a":' + entry(offsets="[8,16]") + "}", d16),
        "duplicate-name-by-escape": raw(a + ',"\\u0061":' + entry(offsets="[8,16]") + "}", d16),
        "duplicate-metadata": raw('{"__metadata__":{},"__metadata__":{},' + a[1:] + "}", d8),
        "duplicate-metadata-key": raw('{"__metadata__":{"k":"1","k":"2"},' + a[1:] + "}", d8),
        "duplicate-field": raw('{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', d8),
        "metadata-number": raw('{"__metadata__":{"k":1},' + a[1:] + "}", d8),
        "metadata-nested": raw('{"__metadata__":{"k":{}},' + a[1:] + "}", d8),
        "metadata-list": raw('{"__metadata__":["k"],' + a[1:] + "}", d8),
        "unknown-dtype": raw('{"a":' + entry("F33") + "}", d8),
        "unknown-field": raw('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}', d8),
        "missing-dtype": raw('{"a":{"shape":[2],"data_offsets":[0,8]}}', d8),
        "missing-shape": raw('{"a":{"dtype":"F32","data_offsets":[0,8]}}', d8),
        "missing-offsets": raw('{"a":{"dtype":"F32","shape":[2]}}', d8),
        "one-offset": raw('{"a":' + entry(offsets="[8]") + "}", d8),
        "three-offsets": raw('{"a":' + entry(offsets="[0,8,8]") + "}", d8),
        "offsets-reversed": raw('{"a":' + entry(shape="[0]", offsets="[8,0]") + "}", d8),
        "size-too-small": raw('{"a":' + entry(shape="[3]") + "}", d8),
        "shape-overflows-u64": raw('{"a":' + entry(shape="[4294967296,4294967296]", offsets="[0,0]") + "}"),
        "shape-overflows-bytes": raw('{"a":' + entry(shape="[4611686018427387904]", offsets="[0,0]") + "}"),
        "shape-above-int64": raw('{"a":' + entry(shape="[9223372036854775808]") + "}", d8),
        "shape-above-u64": raw('{"a":' + entry(shape="[18446744073709551618]") + "}", d8),
        "shape-negative": raw('{"a":' + entry(shape="[-2]") + "}", d8),
        "shape-fraction": raw('{"a":' + entry(shape="[2.0]") + "}", d8),
        "shape-exponent": raw('{"a":' + entry(shape="[2e0]") + "}", d8),
        "shape-leading-zero": raw('{"a":' + entry(shape="[02]") + "}", d8),
        "shape-text": raw('{"a":' + entry(shape='["2"]') + "}", d8),
        "shape-65-axes": raw('{"a":' + entry(shape="[2" + ",1" * 64 + "]") + "}", d8),
        "shape-trailing-comma": raw('{"a":' + entry(shape="[2,]") + "}", d8),
        "name-invalid-utf8": raw(b'{"\xff":' + entry().encode() + b"}", d8),
        "name-overlong-utf8": raw(b'{"\xc0\x80":' + entry().encode() + b"}", d8),
        "name-surrogate": raw(b'{"\xed\xa0\x80":' + entry().encode() + b"}", d8),
        "name-half-escape": raw('{"\\ud800":' + entry() + "}", d8),
        "name-control-byte": raw('{"a\nb":' + entry() + "}", d8),
        "name-very-long": raw('{"' + "n" * 5000 + '":' + entry() + "}", d8),
        "tensor-is-null": raw('{"a":null}'),
        "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\n"
                       b"oid sha256:0123456789abcdef\nsize 548105171\n",
        "empty-file": b"",
        "eight-bytes": struct.pack("<Q", 2),
    }
    for name, content in files.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    # Valid for the library, kinds that llmctl does not read.
    for name, dtype, count in [("C64", torch.complex64, 2), ("F8_E8M0", torch.float8_e8m0fnu, 8),
                               ("F8_E4M3FNUZ", torch.float8_e4m3fnuz, 8),
                               ("F8_E5M2FNUZ", torch.float8_e5m2fnuz, 8)]:
        save_file({"a": torch.zeros(count, dtype=torch.uint8 if count == 8 else dtype).view(dtype)},
                  folder / f"dtype-{name}.safetensors")
    for name, shape in [("F4", "[16]"), ("F6_E2M3", "[8]"), ("F6_E3M2", "[8]")]:
        size = 8 if name == "F4" else 6
        (folder / f"dtype-{name}.safetensors").write_bytes(
            raw('{"a":' + entry(name, shape, f"[0,{size}]") + "}", d8[:size]))


def bad_index():
    folder = bad / "hf-index"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = {
        "parent-directory": '{"weight_map":{"a":"../model.safetensors"}}',
        "absolute-path": '{"weight_map":{"a":"/etc/passwd"}}',
        "subfolder": '{"weight_map":{"a":"x/model.safetensors"}}',
        "dot-dot": '{"weight_map":{"a":".."}}',
        "empty-name": '{"weight_map":{"a":""}}',
        "zero-byte-name": '{"weight_map":{"a":"a\\u0000.safetensors"}}',
        "number": '{"weight_map":{"a":1}}',
        "duplicate-tensor": '{"weight_map":{"a":"x","b":"x","a":"x"}}',
        "duplicate-map": '{"weight_map":{"a":"x"},"weight_map":{"a":"x"}}',
        "no-map": '{"metadata":{"total_size":1}}',
        "empty-map": '{"weight_map":{}}',
        "map-is-list": '{"weight_map":["a"]}',
        "not-an-object": '["a"]',
        "trailing-text": '{"weight_map":{"a":"x"}} {}',
        "deep": '{"x":' + "[" * 70 + "]" * 70 + ',"weight_map":{"a":"x"}}',
        "unclosed-deep": '{"x":' + '{"y":' * 200,
        "cut": '{"weight_map":{"a":"x"}',
        "comment": '{"weight_map":{"a":"x"}} // note',
        "bad-total-size": '{"metadata":{"total_size":01},"weight_map":{"a":"x"}}',
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content)


def bad_ini():
    folder = bad / "ini"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = {
        "no-section": b"head_num = 4\n",
        "unclosed-section": b"[gpt\nhead_num = 4\n",
        "no-separator": b"[gpt]\nhead_num 4\n",
        "comment-in-key": b"[gpt]\nhead ;num = 4\n",
        "duplicate-key": b"[gpt]\nhead_num = 4\nhead_num = 8\n",
        "duplicate-key-other-case": b"[gpt]\nhead_num = 4\nHead_Num = 8\n",
        "duplicate-key-later-section": b"[gpt]\nhead_num = 4\n[x]\na = 1\n[GPT]\nhead_num = 8\n",
        "zero-byte": b"[gpt]\nhead_num = 4\0\n",
    }
    for name, content in files.items():
        (folder / f"{name}.ini").write_bytes(content)


good()
bad_safetensors()
bad_index()
bad_ini()
