"""The oracle of Megatron checkpoints checked by itself: logits computed from the tensors of every
rank, as Megatron computes, equal those of transformers (Yuan: of its formulas). llmctl is not run."""
import warnings

import torch
import transformers

import megatron_forward
import megatron_layout as layout_of
import yuan
from families import build
from harness import Checks, about
from megatron_layout import Layout


def gpt2(rng, **more):
    heads = rng.choice([4, 8])
    return transformers.GPT2Config(
        vocab_size=rng.randint(90, 130), n_positions=32, n_embd=heads * 4, n_layer=4, n_head=heads,
        n_inner=rng.choice([None, heads * 8]), bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=rng.random() < 0.6, **more)


def llama(rng, **more):
    heads = 8
    kv = rng.choice([2, 4, 8])
    return transformers.LlamaConfig(
        vocab_size=rng.randint(90, 130), hidden_size=48, intermediate_size=rng.choice([64, 88]),
        num_hidden_layers=4, num_attention_heads=heads, num_key_value_heads=kv,
        head_dim=rng.choice([4, 6]), max_position_embeddings=32, bos_token_id=1, eos_token_id=2,
        rms_norm_eps=1e-5, rope_theta=rng.choice([10000.0, 500000.0]),
        tie_word_embeddings=rng.random() < 0.4, **more)


def bloom(rng, **more):
    heads = rng.choice([4, 8, 12])
    return transformers.BloomConfig(
        vocab_size=rng.randint(90, 130), hidden_size=heads * 4, n_layer=4, n_head=heads,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=True, **more)


CONFIGS = dict(gpt2=gpt2, llama=llama, bloom=bloom)


def layouts_of(family, kv_heads):
    """Every kind of layout that could hold the family."""
    out = [Layout(tp=tp, pp=pp, blocks=blocks, vp=vp, spelling=spelling)
           for tp, pp, blocks, vp, spelling in (
               (1, 1, (), 1, "layernorm"), (2, 2, (), 1, "norm"), (4, 4, (), 1, "layernorm"),
               (2, 2, (3, 1), 1, "layernorm"), (1, 2, (), 2, "norm"), (8, 1, (), 1, "norm"))]
    if family == "gpt2":  # the only one of these that old versions knew
        out += [Layout(version=v, spelling=spelling, tp=tp, pp=pp)
                for v, spelling, tp, pp in ((None, "v1", 2, 1), (0, "v1", 4, 1), (1.0, "v1", 2, 1),
                                            (1.0, "v1", 4, 1), (2.0, "v1", 2, 2))]
    if family != "bloom":
        out += [Layout(style=s, tp=tp, pp=pp, vp=vp) for s, tp, pp, vp in (
            ("core-local", 1, 1, 1), ("core-local", 2, 2, 1), ("core-te", 4, 1, 1),
            ("core-te", 2, 2, 2))]
    return [x for x in out if kv_heads % x.tp == 0]


def check_family(family):
    def check(rng, folder):
        config = CONFIGS[family](rng)
        model = build(config)
        weights = layout_of.FROM_HF[family](model)
        ids = [rng.randrange(config.vocab_size) for _ in range(11)]
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0]
        kv = weights.geometry.kv_heads
        for number, layout in enumerate(layouts_of(family, kv)):
            with about(f"{layout} {config.to_diff_dict()}"):
                root = folder / str(number)
                done = layout_of.write(weights, root, layout, rng.randrange(100))
                actual = megatron_forward.logits(root / done.step_dir(), ids)
                assert actual.shape[1] == done.vocab
                torch.testing.assert_close(actual[:, :config.vocab_size], expected, rtol=1e-4,
                                           atol=1e-4 * float(expected.max() - expected.min()))
    return check


def check_yuan(rng, folder):
    weights = yuan.random_weights(rng, layers=5)
    ids = [rng.randrange(weights.geometry.vocab) for _ in range(9)]
    expected = yuan.reference_logits(weights, ids)
    for number, layout in enumerate((
            Layout(), Layout(tp=8), Layout(tp=2, pp=3, blocks=(1, 3, 1)),
            Layout(tp=4, pp=5, blocks=(1,) * 5), Layout(tp=1, pp=4, blocks=(0, 2, 2, 1)))):
        with about(layout):
            root = folder / str(number)
            done = layout_of.write(weights, root, layout)
            assert done.vocab == 128
            actual = megatron_forward.logits(root / done.step_dir(), ids)
            torch.testing.assert_close(actual[:, :weights.geometry.vocab], expected, rtol=1e-4,
                                       atol=1e-4 * float(expected.max() - expected.min()))


def check_yuan_scripts(rng, folder):
    """Splitting each stage, then joining the stages, is the layout of the target; the reference
    of the Hugging Face form is the same model."""
    blocks = (1, 2, 1, 2, 1)
    weights = yuan.random_weights(rng, layers=sum(blocks), dtype=torch.bfloat16)
    source = layout_of.complete(weights, Layout(pp=5, blocks=blocks))
    target = layout_of.complete(weights, Layout(tp=8, tied_copy_at_pp1=True))
    stages = [layout_of.model_chunks(weights, source, p, 0)["model"] for p in range(5)]
    split = [yuan.split_tp(stage, 8) for stage in stages]
    for rank in range(8):
        merged = dict(megatron_forward._flat(yuan.merge_pp([s[rank] for s in split], blocks)))
        wanted = dict(megatron_forward._flat(layout_of.model_chunks(weights, target, 0, rank)["model"]))
        assert merged.keys() == wanted.keys(), sorted(merged.keys() ^ wanted.keys())
        for name, tensor in wanted.items():
            assert torch.equal(merged[name], tensor), name


def check_vectors(rng, folder):
    """The orders that can be written down by hand: fused rows of two heads of two."""
    g = layout_of.Geometry("gpt2", 1, 1, 2, 2, 2, 1, 8, 8, "learned", "LayerNorm", False, True, True,
                           True, 1e-5)
    rows = {"0.q": [0, 1, 2, 3], "0.k": [4, 5, 6, 7], "0.v": [8, 9, 10, 11]}
    weights = layout_of.Weights(g, {n: torch.tensor(r).view(4, 1) for n, r in rows.items()})

    def fused(version):
        layout = Layout(version=version)
        return layout_of.fused_qkv(weights, layout, 0, 0).reshape(-1).tolist()
    assert fused(None) == list(range(12))
    assert fused(2.0) == fused(3.0) == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]
    # From the rows of 1.0 (n * 6 + j * 3 + s) to those of 2.0.
    old = fused(1.0)
    assert [old[i] for i in (0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11)] == fused(2.0)
    assert [layout_of.padded_vocab(50257, 128, tp) for tp in (1, 2, 4, 8)] == [
        50304, 50432, 50688, 51200]
    layers = [[layout_of.chunk_layers(replace_layers(g, 8), Layout(pp=2, vp=2), p, c)
               for c in range(2)] for p in range(2)]
    assert layers == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    big = replace_layers(g, 84)
    blocks = Layout(pp=32, blocks=tuple(yuan.BLOCKS_102B))
    assert [layout_of.chunk_layers(big, blocks, p, 0)[0] for p in (10, 30, 31)] == [20, 80, 82]


def replace_layers(geometry, layers):
    return layout_of.replace(geometry, layers=layers)


def main():
    warnings.filterwarnings("ignore")
    checks = Checks()
    checks.run("vectors", check_vectors)
    for family in CONFIGS:
        for repeat in range(2):
            checks.run(f"logits {family} {repeat}", check_family(family))
    checks.run("logits yuan", check_yuan)
    checks.run("yuan scripts", check_yuan_scripts)
    checks.finish()


if __name__ == "__main__":
    main()
