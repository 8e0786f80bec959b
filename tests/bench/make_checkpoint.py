#!/usr/bin/env python3
"""Writes a Hugging Face checkpoint of random weights, with nothing but Python's own library.

    tests/bench/make_checkpoint.py llama OUT [--gigabytes 4] [--dtype F16]
    tests/bench/make_checkpoint.py bloom-560m OUT

Values are finite, spread over signs and exponents and below 2 in magnitude, so that every cast to
FP16 is an ordinary one.
"""

import argparse
import json
import os
import pathlib
import struct

# Per 16-bit word: which random bits stay and which are set. The exponent's top bits are fixed so
# that 2^-15 <= |x| < 2 (F16: all finite values below 2).
WORD_MASKS = {"F16": (0xBFFF, 0x0000), "BF16": (0x87FF, 0x3800)}
BLOCK_BYTES = 32 << 20
SHARD_BYTES = 5 * 10**9


def llama(gigabytes):
    hidden, ffn, vocab, heads = 4096, 11008, 32000, 32
    layer_bytes = 2 * (4 * hidden * hidden + 3 * hidden * ffn)
    layers = max(1, -(-(int(gigabytes * 10**9) - 4 * vocab * hidden) // layer_bytes))
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=hidden,
        intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, vocab_size=vocab, max_position_embeddings=2048,
        rms_norm_eps=1e-6, hidden_act="silu", tie_word_embeddings=False, bos_token_id=1,
        eos_token_id=2, rope_theta=10000.0)
    tensors = [("model.embed_tokens.weight", [vocab, hidden])]
    for i in range(layers):
        p = f"model.layers.{i}."
        tensors += [(p + f"self_attn.{x}_proj.weight", [hidden, hidden]) for x in "qkvo"]
        tensors += [(p + f"mlp.{x}_proj.weight", [ffn, hidden]) for x in ("gate", "up")]
        tensors += [(p + "mlp.down_proj.weight", [hidden, ffn]),
                    (p + "input_layernorm.weight", [hidden]),
                    (p + "post_attention_layernorm.weight", [hidden])]
    return config, tensors + [("model.norm.weight", [hidden]), ("lm_head.weight", [vocab, hidden])]


def bloom_560m():
    hidden, layers, heads, vocab = 1024, 24, 16, 250880
    config = dict(
        architectures=["BloomForCausalLM"], model_type="bloom", hidden_size=hidden, n_layer=layers,
        n_head=heads, vocab_size=vocab, layer_norm_epsilon=1e-5, bos_token_id=1, eos_token_id=2,
        pad_token_id=3, apply_residual_connection_post_layernorm=False)
    norm = lambda name: [(name + ".weight", [hidden]), (name + ".bias", [hidden])]
    linear = lambda name, out, width: [(name + ".weight", [out, width]), (name + ".bias", [out])]
    tensors = [("word_embeddings.weight", [vocab, hidden])] + norm("word_embeddings_layernorm")
    for i in range(layers):
        p = f"h.{i}."
        tensors += norm(p + "input_layernorm") + norm(p + "post_attention_layernorm")
        tensors += linear(p + "self_attention.query_key_value", 3 * hidden, hidden)
        tensors += linear(p + "self_attention.dense", hidden, hidden)
        tensors += linear(p + "mlp.dense_h_to_4h", 4 * hidden, hidden)
        tensors += linear(p + "mlp.dense_4h_to_h", hidden, 4 * hidden)
    return config, tensors + norm("ln_f")


def num_bytes(shape):
    total = 2
    for size in shape:
        total *= size
    return total


def random_block(dtype):
    keep, fixed = WORD_MASKS[dtype]
    words = BLOCK_BYTES // 2
    bits = int.from_bytes(os.urandom(BLOCK_BYTES), "little")
    bits &= int.from_bytes(struct.pack("<H", keep) * words, "little")
    bits |= int.from_bytes(struct.pack("<H", fixed) * words, "little")
    return bits.to_bytes(BLOCK_BYTES, "little")


def write_shard(path, tensors, dtype, block):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        end = offset + num_bytes(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    view = memoryview(block)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        left, start = offset, 0
        while left > 0:
            # Another start each time, so that no two stretches of the file line up.
            start = (start + 7919 * 64) % BLOCK_BYTES
            piece = view[start:start + min(left, BLOCK_BYTES - start)]
            file.write(piece)
            left -= len(piece)
        file.flush()
        os.fsync(file.fileno())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["llama", "bloom-560m"])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--dtype", choices=sorted(WORD_MASKS), default="F16")
    args = parser.parse_args()

    config, tensors = llama(args.gigabytes) if args.model == "llama" else bloom_560m()
    config["torch_dtype"] = {"F16": "float16", "BF16": "bfloat16"}[args.dtype]
    args.out.mkdir(parents=True)
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    shards, filled = [[]], 0
    for name, shape in tensors:
        if filled and filled + num_bytes(shape) > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += num_bytes(shape)
    block = random_block(args.dtype)
    total, weight_map = 0, {}
    for i, shard in enumerate(shards, 1):
        file = ("model.safetensors" if len(shards) == 1 else
                f"model-{i:05d}-of-{len(shards):05d}.safetensors")
        write_shard(args.out / file, shard, args.dtype, block)
        weight_map.update({name: file for name, _ in shard})
        total += sum(num_bytes(shape) for _, shape in shard)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (args.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    print(f"{args.out}: {total / 1e9:.2f} GB in {len(shards)} file(s)")


if __name__ == "__main__":
    main()
