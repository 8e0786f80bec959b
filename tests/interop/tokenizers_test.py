#!/usr/bin/env python3
"""Compares llmctl's tokenizers with the Python libraries on a whole corpus and on random Unicode.

    tokenizers_test.py [--tool build/dev/tests/llmctl_text_tool] [--data ../shared/data] [--only NAME] [--seed N]

For every tokenizer folder under DATA/tokenizers (and the SentencePiece models under DATA/models) all
lines of wikitext-2/test.txt, a long stretch of it as one text, and 2,000 random strings are encoded and
decoded by both, and 500 lists of random ids decoded; ids and texts must be equal. (llmctl decodes each as
a stream too, which must give the same text in whole characters.) Needs the Python packages tokenizers, sentencepiece and tiktoken,
and the test data (LLMCTL_TEST_DATA): without either it says so and passes.
"""

import argparse
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unicodedata

# Characters that tokenizers stumble over, beside those drawn from whole blocks.
NASTY = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u180e", "\u200b", "\u200d", "\ufeff",
         "'s", "'S", "'ll", "'re", "\u017f", "e\u0301", "\u1e9b\u0323", "\uac00", "\u1100\u1161", "\u0130", "\u212a", "\ufb01",
         "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2460", "\u24b6", "\u0660", "\u00bd", "\u4e00",
         "\u3042", "\u0e01\u0e33", "\u0915\u094d\u0937", "<unk>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<0x0A>",
         "\u2581", "\u2581\u2581", "\u0000", "\u0001", "\u007f", "\u0085", "\ufffd", "\U0010ffff", "1234567", "a", "the", "The"]
QWEN_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
                r"\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3_PATTERN = QWEN_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
BLOCKS = [(0x20, 0x7E)] * 4 + [(0xA0, 0x24F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF),
                               (0x1E00, 0x20CF), (0x2100, 0x27BF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
                               (0xF900, 0xFAFF), (0xFE00, 0xFFEF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF)]


# Long runs and edges of texts: where white space is collapsed, a prefix added, an end cut.
EDGES = ["", " ", "  ", "\t", "\n", " a", "a ", "  a  b  ", "\n\n a \t", "\u2581", " \u2581 ", "\u3000a\u3000", "\u00a0", "<s>", "<0x41>",
         "\u0000", "a\u0000b", "\u200b", "\ufeff", "e\u0301" * 50, "a" * 5000, " " * 5000, "\n" * 700, "\t" * 700, "ab" * 3000,
         "\u4e2d" * 3000, "\U0001f600" * 900, "\u0301" * 900, "." * 3000, "-" * 999, "0" * 999, "\u0001" * 300, "a" + " " * 999,
         "the" * 900, "\U0002a6df" * 300, "\ufb01" * 300, "<unk>" * 90, "\u2581" * 900, "\ud7a3" * 300, "<n>" * 99]


def random_texts(count, seed):
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(1, 40)):
            if rng.random() < 0.35:
                parts.append(rng.choice(NASTY))
            else:
                low, high = rng.choice(BLOCKS)
                parts.append(chr(rng.randint(low, high)))
        texts.append("".join(parts))
    return texts


# Settings of the SentencePiece trainer that the published models do not have together. "unused" takes that share of the
# pieces out of use afterwards.
TRAINED = {
    "bpe": dict(model_type="bpe"),
    "bpe-fallback": dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False),
    "bpe-symbols": dict(model_type="bpe", user_defined_symbols=["<n>", "ing", "th", "the", " a", "\u4e2d", "\u2581of", "1"],
                        control_symbols=["<c>", "e"], byte_fallback=True),
    "bpe-spaces": dict(model_type="bpe", split_by_whitespace=False, allow_whitespace_only_pieces=True,
                       remove_extra_whitespaces=False, normalization_rule_name="nfkc"),
    "bpe-unused": dict(model_type="bpe", unused=0.3),
    "bpe-unused-symbols": dict(model_type="bpe", unused=0.6, user_defined_symbols=["th", "er"], byte_fallback=True),
    "bpe-plain": dict(model_type="bpe", add_dummy_prefix=False),
    "unigram": dict(model_type="unigram"),
    "unigram-symbols": dict(model_type="unigram", user_defined_symbols=["<n>", "ing", "th", "the", " a", "\u4e2d", "\u2581of", "1"],
                            control_symbols=["<c>", "e"], normalization_rule_name="nmt_nfkc_cf"),
    "unigram-fallback": dict(model_type="unigram", byte_fallback=True, add_dummy_prefix=False, normalization_rule_name="nfkc_cf"),
    "unigram-unused": dict(model_type="unigram", unused=0.3, split_by_whitespace=False, remove_extra_whitespaces=False),
    "char": dict(model_type="char", vocab_size=80, user_defined_symbols=["the"]),
    "char-fallback": dict(model_type="char", vocab_size=400, byte_fallback=True, bos_id=-1),
    "word": dict(model_type="word", vocab_size=900),
    "word-fallback": dict(model_type="word", vocab_size=900, byte_fallback=True, remove_extra_whitespaces=False),
}


def train(lines, path, settings):
    import sentencepiece
    settings = dict(settings)
    unused = settings.pop("unused", 0)
    sentencepiece.SentencePieceTrainer.train(
        input=lines, model_prefix=path, minloglevel=2, num_threads=1, **{"vocab_size": 1000, "hard_vocab_limit": False, **settings})
    if unused:
        with open(path + ".model", "rb") as f:
            data = take_out_of_use(f.read(), unused)
        with open(path + ".model", "wb") as f:
            f.write(data)


def take_out_of_use(data, share):
    """Gives a share of the pieces the type UNUSED (5), by hand: pieces are field 1, their type is field 3."""
    def varint(at):
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value, at

    rng = random.Random(7)
    out, at = bytearray(), 0
    while at < len(data):
        begin = at
        tag, at = varint(at)
        assert tag & 7 == 2  # every field of the model is a message
        size, at = varint(at)
        piece = data[at:at + size]
        at += size
        # A normal piece: a spelling, a score, no type.
        if tag == 10 and len(piece) == 2 + piece[1] + 5 and rng.random() < share:
            piece += bytes([3 << 3, 5])
            out += bytes([10, len(piece)]) + piece
        else:
            out += data[begin:at]
    return bytes(out)


class TokenizersOracle:
    def __init__(self, path):
        import tokenizers
        self.tokenizer = tokenizers.Tokenizer.from_file(path)
        self.tokenizer.no_truncation()

    def run(self, texts):
        encodings = [e.ids for e in self.tokenizer.encode_batch(texts)]
        return [(ids, self.decode(ids)) for ids in encodings]

    def size(self):
        return self.tokenizer.get_vocab_size()

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)


class SentencePieceOracle:
    def __init__(self, path, prefix, suffix):
        import sentencepiece
        self.model = sentencepiece.SentencePieceProcessor(model_file=path)
        self.prefix, self.suffix = prefix, suffix

    def run(self, texts):
        out = []
        for text in texts:
            ids = self.model.encode(text)
            out.append((self.prefix + ids + self.suffix, self.model.decode(ids)))
        return out

    def size(self):
        return self.model.get_piece_size()

    def decode(self, ids):
        return self.model.decode(ids)


class TiktokenOracle:
    """tiktoken with the pattern and special tokens that the model's own code gives it."""

    def __init__(self, path, pattern, specials, prefix=(), normal_form=None):
        import tiktoken
        import tiktoken.load
        self.encoding = tiktoken.Encoding("model", pat_str=pattern, mergeable_ranks=tiktoken.load.load_tiktoken_bpe(path),
                                          special_tokens=specials)
        self.specials, self.prefix, self.normal_form = set(specials.values()), list(prefix), normal_form

    def run(self, texts):
        out = []
        for text in texts:
            if self.normal_form:
                text = unicodedata.normalize(self.normal_form, text)
            ids = self.prefix + self.encoding.encode(text, allowed_special="all")
            out.append((ids, self.decode(ids)))
        return out

    def size(self):
        return self.encoding.n_vocab

    def decode(self, ids):
        return self.encoding.decode([i for i in ids if i not in self.specials], errors="replace")


class ChatGlmOracle(SentencePieceOracle):
    """ChatGLM-6B's SPTokenizer: white space as pieces, [gMASK] <sop> at the end (tokenization_chatglm.py)."""

    def run(self, texts):
        out = []
        for text in texts:
            text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
            for i in range(80, 1, -1):
                text = text.replace(" " * i, f"<|blank_{i}|>")
            ids = self.model.encode(text)
            out.append((self.prefix + ids + self.suffix, self.decode(ids)))
        return out

    def decode(self, ids):
        plain = self.model.decode(ids).replace("<n>", "\n").replace("<|tab|>", "\t")
        for i in range(2, 81):
            plain = plain.replace(f"<|blank_{i}|>", " " * i)
        return plain


def llmctl(tool, directory, texts):
    done = subprocess.run([tool, "tokens", directory], input=json.dumps(texts).encode(), check=True, stdout=subprocess.PIPE)
    return [(case["ids"], case["text"]) for case in json.loads(done.stdout)]


def compare(name, ours, oracle, texts):
    different = [i for i in range(len(texts)) if ours[i] != oracle[i]]
    print(f"{name}: {len(texts) - len(different)} of {len(texts)} texts equal")
    for i in different[:5]:
        print("  text  ", ascii(texts[i])[:300])
        print("  llmctl", str(ours[i])[:300])
        print("  oracle", str(oracle[i])[:300])
    return not different


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = os.environ.get("LLMCTL_SOURCE_DIR", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
    binary = os.environ.get("LLMCTL_BINARY", os.path.join(source, "build/dev/cli/llmctl"))
    parser.add_argument("--tool", default=os.path.join(os.path.dirname(binary), "..", "tests", "llmctl_text_tool"),
                        help="tests/interop/text_tool.cc, built")
    parser.add_argument("--data", default=os.environ.get("LLMCTL_TEST_DATA", os.path.join(source, "..", "shared", "data")),
                        help="the test data folder")
    parser.add_argument("--only", help="one tokenizer by name")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    for module in ("tokenizers", "sentencepiece", "tiktoken"):
        if importlib.util.find_spec(module) is None:
            print(f"SKIPPED: no Python package {module}", file=sys.stderr)
            return 0
    if not os.path.isdir(os.path.join(arguments.data, "tokenizers")):
        print(f"SKIPPED: no tokenizers in {arguments.data}; set LLMCTL_TEST_DATA", file=sys.stderr)
        return 0

    with open(os.path.join(arguments.data, "text/wikitext-2/test.txt"), encoding="utf-8", newline="") as f:
        corpus = f.read()
    print("seed", arguments.seed)
    random_part = random_texts(2000, arguments.seed)
    texts = corpus.split("\n") + random_part + EDGES + [corpus[:200000]]

    tokenizers_root = os.path.join(arguments.data, "tokenizers")
    cases = [(name, f"{name}/{file}") for name, file in [("gpt2", "tokenizer.json"), ("llama3", "tokenizer.json"),
                                                         ("qwen2", "tokenizer.json"), ("gptneox", "20B_tokenizer.json"),
                                                         ("llama2", "tokenizer.json")]]
    ok = True
    with tempfile.TemporaryDirectory() as work:
        def case(name, oracle, files, texts=texts):
            nonlocal ok
            if arguments.only and arguments.only != name:
                return
            directory = os.path.join(work, name.replace("/", "-"))
            os.makedirs(directory)
            for source, target in files:
                shutil.copy(source, os.path.join(directory, target))
            library = oracle()
            rng = random.Random(arguments.seed)
            soups = [[rng.randrange(library.size()) for _ in range(rng.randrange(1, 30))] for _ in range(500)]
            expected = library.run(texts) + [(ids, library.decode(ids)) for ids in soups]
            ok = compare(name, llmctl(arguments.tool, directory, texts + soups), expected, texts + soups) and ok

        for name, file in cases:
            path = os.path.join(tokenizers_root, file)
            case(name, lambda: TokenizersOracle(path), [(path, "tokenizer.json")])
        gpt2 = os.path.join(tokenizers_root, "gpt2")
        case("gpt2/vocab.json", lambda: TokenizersOracle(os.path.join(gpt2, "tokenizer.json")),
             [(os.path.join(gpt2, f), f) for f in ("vocab.json", "merges.txt")])
        qwen2 = os.path.join(tokenizers_root, "qwen2")
        case("qwen2/vocab.json", lambda: TokenizersOracle(os.path.join(qwen2, "tokenizer.json")),
             [(os.path.join(qwen2, f), f) for f in ("vocab.json", "merges.txt", "tokenizer_config.json")])
        for folder, prefix, suffix in [("tokenizers/llama2", [1], []), ("tokenizers/baichuan2", [], []),
                                       ("tokenizers/chatglm2", [64790, 64792], []), ("tokenizers/yuan2", [1], [2]),
                                       ("models/llama-stories260K", [1], []),
                                       ("models/llama-babyllama-tok105", [1], [])]:
            root = os.path.join(arguments.data, folder)
            files = [f for f in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
                     if os.path.exists(os.path.join(root, f))]
            case(folder.split("/")[1] + "/tokenizer.model",
                 lambda: SentencePieceOracle(os.path.join(root, "tokenizer.model"), prefix, suffix),
                 [(os.path.join(root, f), f) for f in files])
        qwen = os.path.join(tokenizers_root, "qwen")
        names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [f"<|extra_{i}|>" for i in range(205)]
        case("qwen/qwen.tiktoken", lambda: TiktokenOracle(os.path.join(qwen, "qwen.tiktoken"), QWEN_PATTERN,
                                                          {name: 151643 + i for i, name in enumerate(names)}, normal_form="NFC"),
             [(os.path.join(qwen, f), f) for f in ("qwen.tiktoken", "tokenizer_config.json")])
        llama3 = os.path.join(tokenizers_root, "llama3")
        names = ["<|begin_of_text|>", "<|end_of_text|>"] + [f"<|reserved_special_token_{i}|>" for i in range(4)] + \
            ["<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"] + \
            [f"<|reserved_special_token_{i}|>" for i in range(5, 251)]
        for files in (["tokenizer.model"], ["tokenizer.model", "tokenizer_config.json"]):
            case("llama3/" + "+".join(files), lambda: TiktokenOracle(os.path.join(llama3, "tokenizer.model"), LLAMA3_PATTERN,
                                                                     {name: 128000 + i for i, name in enumerate(names)}, [128000]),
                 [(os.path.join(llama3, f), f) for f in files])
        chatglm = os.path.join(tokenizers_root, "chatglm")
        case("chatglm/ice_text.model", lambda: ChatGlmOracle(os.path.join(chatglm, "ice_text.model"), [], [130001, 130004]),
             [(os.path.join(chatglm, f), f) for f in ("ice_text.model", "tokenizer_config.json")],
             # A unigram model adds scores up in F32, so that the same word is cut differently deep in a text.
             texts + [separator.join(["chose", "Jenson"] * 40000) for separator in (" ", "\n", "\t", "")])

        lines = [line for line in corpus.split("\n") if line.strip()][:3000]
        with open(os.path.join(work, "lines"), "w", encoding="utf-8") as f:
            f.write("\n".join(lines))
        few = lines[:500] + random_part + EDGES
        for name, settings in TRAINED.items():
            if arguments.only and arguments.only != "trained/" + name:
                continue
            path = os.path.join(work, "trained-" + name)
            train(os.path.join(work, "lines"), path, settings)
            prefix = [] if settings.get("bos_id", 1) < 0 else [1]
            case("trained/" + name, lambda: SentencePieceOracle(path + ".model", prefix, []),
                 [(path + ".model", "tokenizer.model")], few)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
