"""Writes pickles of many kinds of values with Python's own pickler, and what they hold as text.

python tests/golden/pickle/make.py

expected.json: file -> the value as tests/formats/pickle_test.cc renders its nodes.
"""

import argparse
import collections
import copyreg
import decimal
import json
import pathlib
import pickle
import signal
import struct
import types

import numpy as np

HERE = pathlib.Path(__file__).parent


def name_of(f):
    return f"{f.__module__}.{f.__qualname__}"


def render(v, protocol):
    r = lambda x: render(x, protocol)
    join = lambda items: "".join(r(x) + "," for x in items)
    if v is None or isinstance(v, bool):
        return str(v)
    if type(v) is int:
        if -2**63 <= v < 2**63:
            return str(v)
        return "big:" + v.to_bytes(v.bit_length() // 8 + 1, "little", signed=True).hex()
    if type(v) is float:
        return "float:" + struct.pack(">d", v).hex()
    if type(v) is str:
        return "text:" + v.encode("utf-8", "surrogatepass").hex()
    if type(v) in (bytes, bytearray):
        return "bytes:" + v.hex()
    if isinstance(v, pickle.PickleBuffer):
        return "bytes:" + v.raw().hex()
    if type(v) is tuple:
        return "(" + join(v) + ")"
    if type(v) is list:
        return "[" + join(v) + "]"
    if type(v) in (dict, collections.OrderedDict, collections.defaultdict, collections.Counter):
        return "{" + "".join(r(k) + ":" + r(x) + "," for k, x in v.items()) + "}"
    if type(v) in (set, frozenset):
        return "<" + join(v) + ">"
    if isinstance(v, type) or isinstance(v, (types.BuiltinFunctionType, types.FunctionType)):
        return name_of(v)
    reducer = copyreg.dispatch_table.get(type(v), lambda x: x.__reduce_ex__(protocol))
    function, arguments, state, items, pairs, *_ = (*reducer(v), None, None, None)[:5]
    new = function is getattr(copyreg, "__newobj__")
    if new:
        function, arguments = arguments[0], arguments[1:]
    out = ("new " if new else "call ") + r(function) + r(tuple(arguments))
    if state is not None:
        out += "state " + r(state)
    if items is not None and (items := list(items)):
        out += "items " + r(items)
    if pairs is not None and (pairs := dict(pairs)):
        out += "pairs " + r(pairs)
    return out


class DictLike(dict):
    pass


class ListLike(list):
    pass


for cls in (DictLike, ListLike):
    cls.__module__ = "__main__"

shared = ["shared"]
factory = collections.defaultdict(list, {"a": [1]})
VALUES = {
    "constants": [None, True, False, (), [], {}],
    "integers": [0, 1, -1, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -2**31, -2**31 - 1,
                 2**55, -2**55, 2**63 - 1, -2**63, 2**63, -2**63 - 1, 2**64, 2**100, -2**100,
                 2**3000],
    "floats": [0.0, -0.0, 1.5, -1e300, 5e-324, float("inf"), float("-inf"), float("nan")],
    "texts": ["", "a", "héllo ☃ 😀", "x" * 255, "y" * 256, "z" * 300, "\ud800", "line\nend\0"],
    "bytes": [b"", b"a", bytes(range(256)), b"b" * 300, bytearray(b"\x00\xff")],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((), ((),)), tuple(range(625))],
    "lists": [[], [1], list(range(1100)), [[], [[]]]],
    "dicts": [{}, {"a": 1}, {i: str(i) for i in range(1100)}, {None: 1, (1, 2): 2, 1.5: 3, True: 4}],
    "sets": [set(), {1, 2, 3}, frozenset(), frozenset({4, 5}), set(range(1010))],
    "ordered": [collections.OrderedDict(), collections.OrderedDict(b=1, a=2), factory,
                collections.Counter("hello")],
    "shared": [shared, shared, {"x": shared}, (shared, shared)],
    "objects": [argparse.Namespace(a=1, b=[2]), types.SimpleNamespace(c=None), complex(1, 2),
                decimal.Decimal("1.5"), slice(1, None, 2), range(3), DictLike({"k": "v"}),
                ListLike([1, 2]), collections.deque([1, 2])],
    "classes": [int, collections.OrderedDict, argparse.Namespace, len],
    "numpy": [np.arange(6, dtype="<u4").reshape(2, 3), np.float64(2.5), np.dtype("int64"),
              np.array([], dtype=np.float32)],
    "megatron_rng": np.random.RandomState(7).get_state(),
    "getattr": None,  # set below
}

expected = {}
for name, value in VALUES.items():
    if name == "getattr":
        continue
    for protocol in (2, 3, 4, 5):
        file = f"{name}.{protocol}.pkl"
        data = pickle.dumps(value, protocol)
        (HERE / file).write_bytes(data)
        # Rendered from what Python reads back: sets iterate in that order when pickled again.
        back = pickle.loads(data)
        if name == "sets":
            data = pickle.dumps(back, protocol)
            (HERE / file).write_bytes(data)
        expected[file] = render(back if name == "sets" else value, protocol)

class ByName:
    """Pickled as Python 3.11.0 to 3.11.2 pickles enums: through getattr."""

    def __reduce__(self):
        return getattr, (signal.Signals, "SIGTERM")


for protocol in (2, 4):
    file = f"getattr.{protocol}.pkl"
    (HERE / file).write_bytes(pickle.dumps(ByName(), protocol))
    expected[file] = "call builtins.getattr(signal.Signals,text:" + b"SIGTERM".hex() + ",)"

(HERE / "expected.json").write_text(json.dumps(expected, indent=0) + "\n")
