"""Writes torch files that llmctl must refuse, one fault each, and a part of the message for each.

python tests/golden/bad/torch/make.py

Needs no torch: pickles and archives are put together byte by byte. faults.json: file -> text that
the refusal must contain.
"""

import json
import pathlib
import struct

HERE = pathlib.Path(__file__).parent
faults = {}


def text(s):
    data = s.encode() if isinstance(s, str) else s
    return b"X" + struct.pack("<I", len(data)) + data


def integer(n):
    if 0 <= n < 256:
        return b"K" + bytes([n])
    data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tup(*items):
    return b"(" + b"".join(items) + b"t"


def glob(module, name):
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


EMPTY_DICT, NONE, FALSE, STOP = b"}", b"N", b"\x89", b"."


def storage(key="0", numel=6, cls="FloatStorage", view=None):
    items = [text("storage"), glob("torch", cls), text(key), text("cpu"), integer(numel)]
    return tup(*items, *([view] if view else [])) + b"Q"


def tensor(shape=(2, 3), strides=(3, 1), offset=0, metadata=None, **options):
    return (glob("torch._utils", "_rebuild_tensor_v2")
            + tup(storage(**options), integer(offset), tup(*map(integer, shape)),
                  tup(*map(integer, strides)), FALSE, glob("collections", "OrderedDict") + b")R",
                  *([] if metadata is None else [metadata]))
            + b"R")


def dictionary(*pairs):
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def pickle(body):
    return b"\x80\x02" + body + STOP


def archive(entries, end=b"", central=None):
    """entries: (name, payload[, options]); options overwrite fields."""
    out, directory = b"", b""
    for name, payload, *rest in entries:
        o = dict(method=0, flags=0x0800, size=len(payload), offset=len(out), local_name=name)
        if rest:
            o.update(rest[0])
        local = name.encode() if o["local_name"] == name else o["local_name"].encode()
        out += struct.pack("<IHHHHHIIIHH", 0x04034b50, 0, o["flags"], o["method"], 0, 0x21, 0, 0, 0,
                           len(local), 0) + local + payload
        directory += struct.pack("<IHHHHHHIIIHHHHHII", 0x02014b50, 0, 0, o["flags"], o["method"], 0,
                                 0x21, 0, o["size"], o["size"], len(name.encode()), 0, 0, 0, 0, 0,
                                 o["offset"]) + name.encode()
    if central:
        directory = central(directory)
    return (out + directory + end +
            struct.pack("<IHHHHIIH", 0x06054b50, 0, 0, len(entries), len(entries), len(directory),
                        len(out), 0))


def bad(name, data, message):
    (HERE / f"{name}.bin").write_bytes(data)
    faults[f"{name}.bin"] = message


DATA = bytes(range(24))


def weights(body, *more, data=DATA):
    return archive([("a/data.pkl", pickle(body)), ("a/data/0", data), ("a/version", b"3\n"), *more])


def bad_pickle(name, body, message, **options):
    bad(name, weights(body, **options), message)


def one(value):
    return dictionary((text("w"), value))


def laughs(value):
    """A pair of pairs of pairs ... of one value: 60 opcodes that hold it 2^60 times."""
    return value + b"q\x00" + b"".join(
        b"0h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60))


GOOD = one(tensor())

# Calls that a trap would make.
for name, module, attribute in [
        ("os_system", "os", "system"), ("posix_system", "posix", "system"),
        ("builtin_eval", "__builtin__", "eval"), ("builtins_exec", "builtins", "exec"),
        ("subprocess_popen", "subprocess", "Popen"), ("runpy", "runpy", "_run_code"),
        ("socket", "socket", "socket"), ("nt_module", "nt", "system"), ("sys_exit", "sys", "exit"),
        ("webbrowser", "webbrowser", "open"), ("shutil", "shutil", "rmtree"), ("pty", "pty", "spawn")]:
    bad_pickle(f"call_{name}", dictionary((text("w"), tensor()), (text("x"), glob(module, attribute) + tup(text("id")) + b"R")),
               f"suspicious pickle: it names '{module} {attribute}'")
bad_pickle("call_stack_global", dictionary((text("x"), text("os") + text("system") + b"\x93" + tup(text("id")) + b"R")),
           "suspicious pickle: it names 'os system'")
bad_pickle("call_dotted", dictionary((text("x"), text("torch.serialization") + text("os.system") + b"\x93")),
           "suspicious pickle: it names 'torch.serialization os.system'")
bad_pickle("call_submodule", one(glob("os.path", "join")), "suspicious pickle")

# The machine itself.
bad_pickle("memo_unset", one(b"h\x07"), "memo entry 7 is not set")
bad_pickle("memo_huge", b"}r\xff\xff\xff\xff(" + text("w") + b"j\xff\xff\xff\xfeu", "memo entry 4278190079 is not set")
bad("stop_empty", archive([("a/data.pkl", b"\x80\x02.")]), "the stack is empty")
bad_pickle("mark_missing", b"}" + text("w") + tensor() + b"u", "no mark")
bad_pickle("tuple2_one", one(integer(1))[:-1] + b"N" + b"(N\x86tu", "TUPLE2 with fewer values")
bad_pickle("long1_shape", one(tensor(shape=(0,)).replace(b"(K\x00t", b"(\x8a\xff" + b"\x7f" * 255 + b"t", 1)),
           "does not fit 63 bits")
bad_pickle("long4_huge", b"\x8b\xff\xff\xff\x7f", "the pickle ends in the middle")
bad_pickle("long4_negative", b"\x8b\xff\xff\xff\xff", "negative length")
bad_pickle("text_huge", b"X\xff\xff\xff\xff", "the pickle ends in the middle")
bad_pickle("text8_huge", b"\x8d" + b"\xff" * 8, "the pickle ends in the middle")
bad_pickle("bytes8_huge", b"\x8e" + b"\xff" * 7 + b"\x7f", "the pickle ends in the middle")
bad_pickle("nested_tuples", b")" + b"\x85" * 100000, "nested deeper than 1000 levels")
bad_pickle("nested_lists", b"]" * 5000 + b"a" * 4999, "nested deeper than 1000 levels")
bad_pickle("nested_marks", b"(" * 5000 + b"t" * 5000, "nested deeper than 1000 levels")
bad_pickle("nested_dicts", b"}" + (text("a") + b"}") * 5000 + b"s" * 5000, "nested deeper than 1000 levels")
bad_pickle("dict_in_itself", b"}q\x00" + text("a") + b"h\x00s" + text("w") + tensor() + b"s", "contains itself")
bad_pickle("list_in_itself", dictionary((text("l"), b"]q\x01h\x01a" + tensor() + b"a")), "contains itself")
bad_pickle("billion_tensors", dictionary((text("w"), laughs(tensor()))),
    "out of proportion")
bad_pickle("long_prefixes", dictionary(
    (b"X" + struct.pack("<I", 100000) + b"k" * 100000 + b"q\x00", tensor() + b"q\x01"),
    *[(text(str(i)), dictionary(*[(text(str(j)) , dictionary((b"h\x00", b"h\x01"))) for j in range(20)])) for i in range(20)]),
    "out of proportion")
bad_pickle("setitems_odd", b"}(" + text("w") + b"u", "a key without a value")
bad_pickle("setitems_on_tuple", b")(" + text("w") + tensor() + b"u", "SETITEMS on a tuple")
bad_pickle("append_to_dict", b"}Na", "APPENDS to a dict")
bad_pickle("build_on_none", b"NNb", "BUILD on a None")
bad_pickle("reduce_without_tuple", one(glob("a", "b") + b"]R"), "not a tuple")
bad_pickle("leftover_stack", b"N" + GOOD, "values left on the stack")
bad_pickle("leftover_mark", b"(" + GOOD, "mark")
bad_pickle("unknown_opcode", b"\xfe", "unknown opcode 0xfe")
bad_pickle("extension", b"\x82\x01", "opcode EXT1")
bad_pickle("buffer", b"\x97", "opcode NEXT_BUFFER")
bad_pickle("text_opcode", b"I1\n", "opcode INT")
bad_pickle("global_unended", b"c" + b"a" * 3000, "module name does not end")
bad("protocol0", archive([("a/data.pkl", b"(dp0\n.")]), "pickle protocol 0 or 1")
bad("protocol9", archive([("a/data.pkl", b"\x80\x09}.")]), "pickle protocol 9")
bad("pickle_unended", archive([("a/data.pkl", b"\x80\x02}")]), "the pickle ends in the middle")
bad("pickle_trailing", archive([("a/data.pkl", pickle(b"}") + b"x")]), "behind the end of the pickle")

# Tensors.
bad_pickle("numel_2_63", one(tensor(numel=2**63)), "does not fit 63 bits")
bad_pickle("numel_overflow", one(tensor(numel=2**62)), "its size overflows")
bad_pickle("numel_negative", one(tensor(numel=-1)), "must not be negative")
bad_pickle("offset_negative", one(tensor(offset=-1)), "must not be negative")
bad_pickle("stride_negative", one(tensor(strides=(-3, 1))), "must not be negative")
bad_pickle("stride_overflow", one(tensor(strides=(2**62, 2**62))), "tensor 'w' reaches element")
bad_pickle("offset_overflow", one(tensor(offset=2**63 - 1)), "tensor 'w' reaches element")
bad_pickle("shape_overflow", one(tensor(shape=(2**40, 2**40), strides=(0, 0))), "product of its axes overflows")
bad_pickle("shape_bytes_overflow", one(tensor(shape=(2**62, 1), strides=(0, 0))), "product of its axes overflows")
bad_pickle("shape_too_long", one(tensor(shape=(1,) * 65, strides=(1,) * 65)), "65 dimensions")
bad_pickle("strides_missing", one(tensor(strides=(1,))), "2 axes and 1 strides")
bad_pickle("shape_text", one(tensor().replace(b"(K\x02K\x03t", b"(K\x02" + text("3") + b"t")), "must be an integer")
bad_pickle("shape_list", one(tensor().replace(b"(K\x02K\x03t", b"](K\x02K\x03e")), "must be tuples")
bad_pickle("view_past_storage", one(tensor(offset=1)), "reaches element 6 of its storage '0', which has 6")
bad_pickle("storage_past_entry", one(tensor(shape=(2, 3), numel=7)), "has 24 bytes in the file, 28 expected")
bad_pickle("storage_missing", one(tensor(key="1")), "storage '1' is not in the file")
bad_pickle("storage_of_none", one(tensor().replace(storage(), NONE)), "whose storage is a None")
bad_pickle("storage_class_unknown", one(tensor(cls="StrangeStorage")), "unknown class torch.StrangeStorage")
bad_pickle("storage_short", one(tup(text("storage"), NONE) + b"Q"), "a storage of 2 items")
bad_pickle("storage_view_outside", one(tensor(view=tup(text("v"), integer(4), integer(3)))), "a storage view of 3 elements at 4")
bad_pickle("duplicate_tensor", dictionary((text("a.b"), tensor()), (text("a"), dictionary((text("b"), tensor())))),
           "two tensors are named 'a.b'")
bad_pickle("name_not_utf8", dictionary((text(b"\xff\xfe"), tensor())), "no printable UTF-8")
bad_pickle("top_level_list_of_nothing", integer(5), "its top level is a int")
bad_pickle("top_level_object", glob("my.module", "Model") + b")\x81", "object of my.module.Model")

# The archive.
PKL = ("a/data.pkl", pickle(GOOD))
bad("zip_deflated", archive([PKL, ("a/data/0", DATA, dict(method=8))]), "compressed (method 8)")
bad("zip_encrypted", archive([PKL, ("a/data/0", DATA, dict(flags=0x0801))]), "encrypted")
bad("zip_overlap", archive([PKL, ("a/data/0", DATA, dict(size=60)), ("a/version", b"3\n")]), "overlap")
bad("zip_duplicate_name", archive([PKL, ("a/data/0", DATA), ("a/data/0", DATA)]), "two entries are named 'a/data/0'")
bad("zip_two_roots", archive([PKL, ("b/data/0", DATA)]), "does not lie under 'a/'")
bad("zip_past_end", archive([PKL, ("a/data/0", DATA, dict(size=2**20))]), "do not lie before the directory")
bad("zip_header_past_end", archive([PKL, ("a/data/0", DATA, dict(offset=2**31))]), "does not lie before the directory")
bad("zip_header_elsewhere", archive([PKL, ("a/data/0", DATA, dict(offset=5))]), "no header where the directory says")
bad("zip_other_name", archive([PKL, ("a/data/0", DATA, dict(local_name="a/data/1"))]), "another name")
bad("zip_no_pickle", archive([("a/data/0", DATA)]), "no 'data.pkl'")
bad("zip_no_root", archive([("data.pkl", pickle(GOOD))]), "not one of torch.save")
bad("zip_empty", b"PK\x03\x04" + archive([]), "empty zip archive")
bad("zip_trailing_byte", archive([PKL, ("a/data/0", DATA)]) + b"x", "no end-of-directory record")
bad("zip_directory_cut", archive([PKL, ("a/data/0", DATA)], central=lambda d: d[:-9]), "directory")
bad("zip_directory_longer", archive([PKL, ("a/data/0", DATA)], central=lambda d: d + b"\0" * 8), "longer than its 2 entries")
bad("zip64_outside", archive([PKL, ("a/data/0", DATA)],
                             end=struct.pack("<IIQI", 0x07064b50, 0, 2**60, 1)), "zip64 end record lies outside")
bad("zip_torchscript", archive([PKL, ("a/constants.pkl", pickle(b")"))]), "TorchScript")
bad("zip_torchscript_code", archive([PKL, ("a/code/__torch__.py", b"pass")]), "TorchScript")
bad("zip_big_endian", archive([PKL, ("a/data/0", DATA), ("a/byteorder", b"big")]), "big-endian")
bad("zip_byteorder_unknown", archive([PKL, ("a/data/0", DATA), ("a/byteorder", b"pdp")]), "'little' or 'big' expected")
bad("zip_version_11", archive([PKL, ("a/data/0", DATA), ("a/version", b"11\n")]), "version '11'")
bad("zip_payload_missing", archive([PKL]), "storage '0' is not in the file")

# The legacy stream.
MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
PROTOCOL = b"\x80\x02M\xe9\x03."


def system(little=b"\x88"):
    return pickle(dictionary((text("protocol_version"), b"M\xe9\x03"), (text("little_endian"), little)))


def legacy(main=GOOD, keys=("0",), counts=(6,), data=DATA, protocol=PROTOCOL, record=system()):
    out = MAGIC + protocol + record + pickle(main) + pickle(b"](" + b"".join(map(text, keys)) + b"e")
    for count in counts:
        out += struct.pack("<q", count) + data
    return out


bad("legacy_protocol", legacy(protocol=b"\x80\x02M\xea\x03."), "protocol of the stream")
bad("legacy_big_endian", legacy(record=system(b"\x89")), "big-endian")
bad("legacy_no_byte_order", legacy(record=pickle(b"}")), "byte order")
bad("legacy_truncated_storage", legacy(data=DATA[:-1]), "24 bytes expected, 23 left")
bad("legacy_trailing_byte", legacy() + b"x", "1 bytes behind the last storage")
bad("legacy_count", legacy(counts=(7,)), "6 elements by the pickle, 7 by the stream")
bad("legacy_count_huge", legacy(main=one(tensor(numel=2**60)), counts=(2**60,)), "bytes expected")
bad("legacy_count_negative", legacy(counts=(-1,)), "6 elements by the pickle")
bad("legacy_key_twice", legacy(keys=("0", "0"), counts=(6, 6)), "listed twice")
bad("legacy_key_unknown", legacy(keys=("9",)), "no tensor uses it")
bad("legacy_key_missing", legacy(keys=(), counts=()), "storage '0' is not in the file")
bad("legacy_key_number", MAGIC + PROTOCOL + system() + pickle(GOOD) + pickle(b"](K\x00e"), "a storage key is a int")
bad("legacy_keys_dict", MAGIC + PROTOCOL + system() + pickle(GOOD) + pickle(b"}"), "list of storage keys is a dict")
bad("legacy_two_descriptions", legacy(main=dictionary((text("w"), tensor()), (text("v"), tensor(cls="DoubleStorage")))),
    "described in two ways")
bad("legacy_call", legacy(main=one(glob("os", "system") + tup(text("id")) + b"R")), "suspicious pickle")

# As torch.save writes z.conj().imag: the storage holds the values with the other sign.
bad("negated_view", weights(one(tensor(metadata=dictionary((text("neg"), b"\x88"))))), "negated or conjugated view")

# Not torch files at all.
bad("git_lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git LFS pointer")
bad("bare_pickle", pickle(GOOD), "bare pickle")
bad("safetensors", struct.pack("<Q", 2) + b"{}", "safetensors file")
bad("tar", b"sys_info".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"), "before version 0.2")
bad("npy", b"\x93NUMPY\x01\x00", "numpy array")
bad("html", b"<!DOCTYPE html><html></html>", "an HTML page")
bad("gguf", b"GGUF" + bytes(20), "a GGUF file")
bad("noise", bytes(range(64)), "neither a zip archive nor the older stream")
bad("empty", b"", "an empty file")

(HERE / "faults.json").write_text(json.dumps(faults, indent=0) + "\n")
# What all of the above is a damaged form of; must be accepted.
(HERE / "accepted").mkdir(exist_ok=True)
(HERE / "accepted" / "zip.bin").write_bytes(weights(GOOD))
(HERE / "accepted" / "legacy.bin").write_bytes(legacy())
(HERE / "accepted" / "storage_view.bin").write_bytes(legacy(main=one(
    tensor(shape=(2,), strides=(1,), view=tup(text("v"), integer(4), integer(2))))))
(HERE / "accepted" / "plain_view.bin").write_bytes(weights(one(tensor(metadata=b"}"))))
(HERE / "accepted" / "duplicate_key.bin").write_bytes(weights(dictionary(
    (text("w"), tensor()), (text("w"), tensor(shape=(6,), strides=(1,))))))
(HERE / "accepted" / "opaque.bin").write_bytes(weights(dictionary(
    (text("x"), glob("my.module", "Thing") + tup(text("id")) + b"R"), (text("w"), tensor()))))
(HERE / "accepted" / "billion_laughs.bin").write_bytes(weights(dictionary(
    (text("x"), laughs(b")")),
    (text("w"), tensor()))))
