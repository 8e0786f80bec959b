#!/usr/bin/env python3
"""Prefill and decode of one LLaMA checkpoint side by side: llmctl, llama.cpp, transformers.

    decode.py MODEL --llmctl build/release/cli/llmctl [--python PY] [--rounds N] [--threads N]

MODEL is a Hugging Face directory of one safetensors file with a LLaMA in F16 or BF16, random
weights will do:

    llmctl synth DIR --family llama --geometry llama-7b --dtype bf16 --set hidden_size=2048 ...

The programs run one after the other, round after round, and the best of each is kept: on a machine
that others use, the best is what the program can do and the rest is what was left of the machine.
llama.cpp takes part where `llama-bench` is on the PATH, with the same weights in a GGUF file that
is written beside the model (queries and keys in the order in which they are stored, which changes
no time); transformers where PY has it with torch. What is absent is said.

--quant int8|int4 compares `llmctl --quant` (int4: groups of 64) with llama.cpp's Q8_0 or Q4_0 of the same weights, embedding
and head included; it needs numpy, and transformers has no part."""
import argparse
import json
import os
import shutil
import struct
import subprocess
import sys

TRANSFORMERS = r"""
import sys, time, json, torch
from transformers import AutoModelForCausalLM
path, dtype, threads, new = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
result = {}
with torch.inference_mode():
    for length in (128, 512):
        ids = torch.arange(length)[None] % 1000 + 3
        model(ids, logits_to_keep=1)
        start = time.perf_counter()
        out = model(ids, use_cache=True, logits_to_keep=1)
        result[f'prefill {length}'] = length / (time.perf_counter() - start)
    for batch in (1, 8):
        ids = torch.arange(16)[None].repeat(batch, 1) + 3
        out = model(ids, use_cache=True)
        token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        start = time.perf_counter()
        for _ in range(new):
            out = model(token, past_key_values=cache, use_cache=True)
            token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        result[f'decode {batch}'] = batch * new / (time.perf_counter() - start)
print(json.dumps(result))
"""


def read_safetensors(path):
    """The header, and where the data begins."""
    with open(path, 'rb') as file:
        (size,) = struct.unpack('<Q', file.read(8))
        header = json.loads(file.read(size))
    header.pop('__metadata__', None)
    return header, 8 + size


def quantised_blocks(values, kind):
    """Rows of F32 as llama.cpp's blocks of 32: an F16 scale, then the integers."""
    import numpy
    blocks = values.reshape(-1, 32)
    if kind == 'Q8_0':
        scale = abs(blocks).max(1) / 127
        whole = numpy.rint(blocks / numpy.where(scale == 0, 1, scale)[:, None]).astype(numpy.int8).view(numpy.uint8)
    else:  # Q4_0: the value of largest magnitude becomes -8
        scale = numpy.take_along_axis(blocks, abs(blocks).argmax(1)[:, None], 1)[:, 0] / -8
        whole = numpy.clip(blocks / numpy.where(scale == 0, 1, scale)[:, None] + 8.5, 0, 15).astype(numpy.uint8)
        whole = whole[:, :16] | whole[:, 16:] << 4
    return numpy.concatenate([scale.astype(numpy.float16).view(numpy.uint8).reshape(-1, 2), whole], 1).tobytes()


def read_rows(source, entry, at, first, count):
    """`count` rows of a matrix as F32."""
    import numpy
    columns = entry['shape'][1]
    source.seek(at + first * columns * 2)
    stored = source.read(count * columns * 2)
    if entry['dtype'] == 'BF16':
        return (numpy.frombuffer(stored, numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)
    return numpy.frombuffer(stored, numpy.float16).astype(numpy.float32)


def write_gguf(model, target, quantised=None):
    """The weights as they are, or matrices as Q8_0 or Q4_0; vectors as F32; no vocabulary."""
    config = json.load(open(os.path.join(model, 'config.json')))
    weights = os.path.join(model, 'model.safetensors')
    header, base = read_safetensors(weights)
    names = {'model.embed_tokens.weight': 'token_embd.weight', 'model.norm.weight': 'output_norm.weight',
             'lm_head.weight': 'output.weight'}
    parts = {'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'ffn_norm', 'self_attn.q_proj': 'attn_q',
             'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v', 'self_attn.o_proj': 'attn_output',
             'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up', 'mlp.down_proj': 'ffn_down'}
    for layer in range(config['num_hidden_layers']):
        for theirs, ours in parts.items():
            names[f'model.layers.{layer}.{theirs}.weight'] = f'blk.{layer}.{ours}.weight'

    def text(value):
        data = value.encode()
        return struct.pack('<Q', len(data)) + data

    def number(key, value):
        return text(key) + (struct.pack('<If', 6, value) if isinstance(value, float) else struct.pack('<II', 4, value))

    heads = config['num_attention_heads']
    pairs = [text('general.architecture') + struct.pack('<I', 8) + text('llama'),
             text('tokenizer.ggml.model') + struct.pack('<I', 8) + text('no_vocab')]
    pairs += [number('llama.' + key, value) for key, value in {
        'vocab_size': config['vocab_size'], 'context_length': config['max_position_embeddings'],
        'embedding_length': config['hidden_size'], 'block_count': config['num_hidden_layers'],
        'feed_forward_length': config['intermediate_size'], 'attention.head_count': heads,
        'attention.head_count_kv': config.get('num_key_value_heads', heads),
        'rope.dimension_count': config['hidden_size'] // heads,
        'attention.layer_norm_rms_epsilon': float(config['rms_norm_eps'])}.items()]
    kinds = {'F32': 0, 'F16': 1, 'BF16': 30, 'Q4_0': 2, 'Q8_0': 8}
    block_bytes = {'Q4_0': 18, 'Q8_0': 34}
    tensors, infos, offset = [], b'', 0
    for name, entry in header.items():
        if name not in names:
            continue
        shape, (begin, end) = entry['shape'], entry['data_offsets']
        widen = len(shape) == 1 and entry['dtype'] != 'F32'
        size = shape[0] * 4 if widen else end - begin
        kind = 'F32' if widen else entry['dtype']
        if quantised and len(shape) == 2:
            kind, size = quantised, shape[0] * shape[1] // 32 * block_bytes[quantised]
        infos += text(names[name]) + struct.pack('<I', len(shape)) + struct.pack(f'<{len(shape)}Q', *reversed(shape))
        infos += struct.pack('<IQ', kinds[kind], offset)
        tensors.append((base + begin, end - begin, entry['dtype'] if widen else None, entry, kind))
        offset += (size + 31) // 32 * 32
    with open(weights, 'rb') as source, open(target, 'wb') as file:
        file.write(b'GGUF' + struct.pack('<IQQ', 3, len(tensors), len(pairs)) + b''.join(pairs) + infos)
        for at, size, widen, entry, kind in tensors:
            file.write(b'\0' * (-file.tell() % 32))
            if kind in block_bytes:
                for first in range(0, entry['shape'][0], 512):
                    rows = read_rows(source, entry, at, first, min(512, entry['shape'][0] - first))
                    file.write(quantised_blocks(rows, kind))
                continue
            source.seek(at)
            if widen == 'BF16':
                file.write(b''.join(b'\0\0' + pair for (pair,) in struct.iter_unpack('2s', source.read(size))))
            elif widen == 'F16':
                values = struct.unpack(f'<{size // 2}e', source.read(size))
                file.write(struct.pack(f'<{len(values)}f', *values))
            else:
                shutil.copyfileobj(_Part(source, size), file, 1 << 22)
        file.write(b'\0' * (-file.tell() % 32))


class _Part:
    def __init__(self, file, left):
        self.file, self.left = file, left

    def read(self, size):
        data = self.file.read(min(size, self.left))
        self.left -= len(data)
        return data


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f'{command[0]} failed:\n{done.stderr[-2000:]}')
    return done.stdout


def run_llmctl(args, new_tokens, *options):
    """Tokens a second, and of decode the part of the memory's bandwidth."""
    common = ['--threads', str(args.threads), '--json', *options]
    result = {}

    def bench(batch, length, output):
        out = json.loads(run([args.llmctl, 'bench', args.model, '--batch-size', batch, '--input-len', length,
                              '--output-len', output, '--rounds', '2'] + common))
        return out['rows']

    for row in bench('1', '128,512', '1'):
        result[f'prefill {row["input_len"]}'] = row['prefill_tokens_per_second']
    for row in bench('1,8', '16', str(new_tokens)):
        result[f'decode {row["batch_size"]}'] = row['decode_tokens_per_second']
        if row['batch_size'] == 1:
            result['decode 1, % of reading'] = 100 * row['memory_fraction']
    return result


def run_llama_bench(args, program, gguf, new_tokens):
    out = json.loads(run([program, '-m', gguf, '-p', '128,512', '-n', str(new_tokens), '-t', str(args.threads), '-r', '1',
                          '-o', 'json']))
    result = {}
    for row in out:
        result['decode 1' if row['n_gen'] else f'prefill {row["n_prompt"]}'] = row['avg_ts']
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model')
    parser.add_argument('--llmctl', default='llmctl')
    parser.add_argument('--python', default=sys.executable)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--new-tokens', type=int, default=32)
    parser.add_argument('--quant', choices=['int8', 'int4'])
    args = parser.parse_args()
    dtype = json.load(open(os.path.join(args.model, 'config.json')))['torch_dtype']

    quant = ['--quant', args.quant] + (['--group-size', '64'] if args.quant == 'int4' else []) if args.quant else []
    programs = {' '.join(['llmctl', *quant]): lambda: run_llmctl(args, args.new_tokens, *quant)}
    if dtype == 'bfloat16' and not quant:  # as the others do
        programs['llmctl --activation-dtype bf16'] = lambda: run_llmctl(args, args.new_tokens, '--activation-dtype', 'bf16')
    gguf = args.model.rstrip('/') + '.gguf'
    llama_bench = shutil.which('llama-bench')
    if llama_bench:
        write_gguf(args.model, gguf, {'int8': 'Q8_0', 'int4': 'Q4_0'}.get(args.quant))
        programs['llama.cpp'] = lambda: run_llama_bench(args, llama_bench, gguf, args.new_tokens)
    else:
        print('llama.cpp: absent, no llama-bench on the PATH')
    probe = subprocess.run([args.python, '-c', 'import torch, transformers'], capture_output=True)
    if args.quant:
        pass
    elif probe.returncode == 0:
        programs['transformers'] = lambda: json.loads(run(
            [args.python, '-c', TRANSFORMERS, args.model, dtype, str(args.threads), str(args.new_tokens)]).splitlines()[-1])
    else:
        print(f'transformers: absent, {args.python} has no torch and transformers')

    best = {name: {} for name in programs}
    for _ in range(args.rounds):
        for name, program in programs.items():
            for what, value in program().items():
                best[name][what] = max(best[name].get(what, 0), value)
    if os.path.exists(gguf):
        os.remove(gguf)
    print(f'tokens/s, {args.quant or dtype}, {args.threads} threads, best of {args.rounds}')
    for what in ('decode 1', 'decode 1, % of reading', 'decode 8', 'prefill 128', 'prefill 512'):
        cells = [f'{name} {best[name][what]:.2f}' for name in programs if what in best[name]]
        print(f'{what:24}', '  '.join(cells))
    return 0


if __name__ == '__main__':
    sys.exit(main())
