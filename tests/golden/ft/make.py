#!/usr/bin/env python3
"""Runs FasterTransformer's own converters on the models of ../families and records what they write.

Per case and tensor parallel size one JSON: the text of config.ini and, for each .bin file, its
size, SHA-256 and XXH3-64. None of FasterTransformer's code or output is kept.

Usage: make.py FASTERTRANSFORMER_CHECKOUT LLAMA_FORK_CHECKOUT [case ...]
Needs torch, transformers, safetensors, numpy, ml_dtypes, xxhash.

The scripts were written for transformers 4.10 to 4.30. What is replaced around them here, and only
around them: process pools become thread pools (their work is independent per file), `device_map`
is dropped (it asks for another package), the pickled weights that GPT-J's script wants are made
from the safetensors file, `rotary_pct`, `_name_or_path` and GPT-NeoX's `embed_out` get the names
that they have in the files and had in transformers 4, and ml_dtypes stands in for the `bfloat16`
package.
"""
import contextlib
import hashlib
import io
import json
import multiprocessing.dummy
import os
import runpy
import shutil
import sys
import tempfile
import types
from pathlib import Path

import ml_dtypes
import torch
import transformers
import xxhash
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
FAMILIES = HERE.parent / "families"

GPT2 = "examples/pytorch/gpt/utils/huggingface_gpt_convert.py"
OPT = "examples/pytorch/gpt/utils/huggingface_opt_convert.py"
BLOOM = "examples/pytorch/gpt/utils/huggingface_bloom_convert.py"
GPTJ = "examples/pytorch/gptj/utils/huggingface_gptj_ckpt_convert.py"
NEOX = "examples/pytorch/gptneox/utils/huggingface_gptneox_convert.py"
LLAMA = "examples/cpp/llama/huggingface_llama_convert.py"  # of the fork

# case -> (script, dtypes, tensor parallel sizes)
CASES = {
    "gpt2": (GPT2, ["fp32", "fp16"], [1, 2, 4]),
    "gpt2-inner": (GPT2, ["fp32"], [1, 2, 4]),
    "gpt2-openai": (GPT2, ["fp32"], [2]),
    "opt": (OPT, ["fp32", "fp16"], [1, 2, 4]),
    "opt-350m": (OPT, ["fp32", "fp16"], [1, 2, 4]),
    "bloom": (BLOOM, ["fp32", "fp16"], [1, 2, 4]),
    "bloom-post": (BLOOM, ["fp32"], [1, 2]),
    "bloom-untied": (BLOOM, ["fp32"], [1, 2]),
    "bloom-equal-head": (BLOOM, ["fp32"], [2]),
    "gptj": (GPTJ, ["fp32"], [1, 2, 4]),
    "gpt_neox": (NEOX, ["fp32", "fp16"], [1, 2, 4]),
    "gpt_neox-serial": (NEOX, ["fp32", "fp16"], [1, 2, 4]),
    "llama-mha": (LLAMA, ["fp32", "fp16", "bf16"], [1, 2, 4]),
}


def arguments(script, case, out, dtype, tp, num_layers):
    """The command line of each script; paths are relative, so that model_name is the case's name."""
    if script == BLOOM:
        return ["-i", case, "-o", out, "-tp", str(tp), "-dt", dtype, "-p", "1"]
    if script == GPTJ:
        return ["--ckpt-dir", case, "--output-dir", out, "--n-inference-gpus", str(tp),
                "--n-layers", str(num_layers)]
    common = ["-i", case, "-o", out, "-i_g", str(tp), "-weight_data_type", dtype]
    if script in (NEOX, LLAMA):
        return common + ["-m_n", case]
    return common + ["-p", "1"]


def patch_environment():
    import multiprocessing
    multiprocessing.Pool = multiprocessing.dummy.Pool
    torch.multiprocessing.set_start_method = lambda *_: None
    torch.multiprocessing.set_sharing_strategy = lambda *_: None
    stand_in = types.ModuleType("bfloat16")
    stand_in.bfloat16 = ml_dtypes.bfloat16
    sys.modules["bfloat16"] = stand_in

    def wrap(cls):
        original = cls.from_pretrained.__func__

        def from_pretrained(owner, path, **kwargs):
            kwargs.pop("device_map", None)
            model = original(owner, path, dtype=torch.float32, **kwargs)
            model.config.__dict__["_name_or_path"] = path
            if model.config.model_type == "gpt_neox":
                stored = json.loads((Path(path) / "config.json").read_text())
                model.config.__dict__["rotary_pct"] = stored["rotary_pct"]
                parameters = [(name.replace("lm_head.", "embed_out."), value)
                              for name, value in model.named_parameters()]
                model.named_parameters = lambda: parameters
            return model
        cls.from_pretrained = classmethod(from_pretrained)

    read_config = transformers.BloomConfig.from_pretrained.__func__

    def bloom_config(owner, path, **kwargs):
        config = read_config(owner, path, **kwargs)
        config._name_or_path = path
        return config
    transformers.BloomConfig.from_pretrained = classmethod(bloom_config)
    for cls in (transformers.GPT2Model, transformers.AutoModelForCausalLM,
                transformers.GPTNeoXForCausalLM, transformers.LlamaForCausalLM):
        wrap(cls)


def run(script_path, argv):
    saved = sys.argv
    sys.argv = [str(script_path), *argv]
    log = io.StringIO()
    try:
        with contextlib.redirect_stdout(log):
            runpy.run_path(str(script_path), run_name="__main__")
    finally:
        sys.argv = saved
    for bad in ("Fail to save", "[ERROR]", "Unused layer"):
        if bad in log.getvalue():
            sys.exit(f"{script_path} {argv}: {log.getvalue()[-2000:]}")


def record(directory):
    files = {}
    for path in sorted(directory.iterdir()):
        if path.suffix == ".bin":
            data = path.read_bytes()
            files[path.name] = [len(data), hashlib.sha256(data).hexdigest(),
                                xxhash.xxh3_64_hexdigest(data)]
    return files


def main():
    checkouts = {False: Path(sys.argv[1]).resolve(), True: Path(sys.argv[2]).resolve()}
    patch_environment()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for case in sys.argv[3:] or CASES:
        script, dtypes, sizes = CASES[case]
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)
            Path(case).mkdir()
            for name in ("config.json", "model.safetensors"):
                shutil.copyfile(FAMILIES / case / name, f"{case}/{name}")
            config = json.loads(Path(f"{case}/config.json").read_text())
            if script == GPTJ:
                # transformers 4 wrote this key when saving; the script wants it.
                Path(f"{case}/config.json").write_text(json.dumps({"_name_or_path": case} | config))
                torch.save(load_file(f"{case}/model.safetensors"), f"{case}/pytorch_model.bin")
            num_layers = config.get("n_layer") or config.get("num_hidden_layers")
            for dtype in dtypes:
                for tp in sizes:
                    out = f"out-{dtype}"
                    run(checkouts[script == LLAMA] / script,
                        arguments(script, case, out, dtype, tp, num_layers))
                    directory = Path(out) / f"{tp}-gpu"
                    files = record(directory)
                    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(value)}"
                                       for name, value in files.items())
                    head = json.dumps(dict(model=case, script=script, dtype=dtype, tp=tp,
                                           config_ini=(directory / "config.ini").read_text()), indent=2)
                    (HERE / f"{case}.{dtype}.tp{tp}.json").write_text(
                        head[:-2] + ',\n  "files": {\n' + lines + "\n  }\n}\n")
                    print(f"{case} {dtype} tp={tp}: {len(files)} files, "
                          f"{sum(v[0] for v in files.values())} bytes", flush=True)
            os.chdir(HERE)


if __name__ == "__main__":
    main()
