#!/usr/bin/env python3
"""Writes the golden files of this folder with the Python libraries tokenizers, sentencepiece and transformers.

    make_goldens.py --data ../shared/data

Without --data only the files about the small tokenizers of this folder are written. The trainer breaks some ties by
chance, so fuse_unk and plain_unk come out different each time; each tokenizer.json fits its golden.json.
"""

import argparse
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile

import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "interop"))
from tokenizers_test import random_texts  # noqa: E402

BLOOM_PATTERN = " ?[^(\\s|[.,!?…。，、।۔،])]+"
LLAMA3_PATTERN = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
                  "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")

HANDMADE = [
    "", " ", "  ", "   ", "\n", "\n\n", "\t", " \n ", "\r\n", "a", " a", "a ", "  a", "a  ", "   a   b   ", "Hello", "Hello world",
    " Hello world", "Hello, y'all! How are you 😁 ?", "I'm sure they'LL say WE'VE it's DON'T", "\tindent\n\tindent\n\n\nend",
    "1 12 123 1234 12345 123456789", "3.14159e-10", "x=1;y=2;//z", "def f(x):\n    return x + 1\n", "日本語のテキスト。", "你好，世界！",
    "한국어 텍스트", "Привет, мир!", "Ελληνικά", "שלום עולם", "مرحبا بالعالم،", "नमस्ते दुनिया।", "ภาษาไทยกำลัง", "👨‍👩‍👧‍👦", "🇩🇪🇫🇷",
    "👍🏽", "e\u0301 vs \u00e9", "\u1100\u1161\u11a8", "ﬁ ﬂ ﬃ ① ² ½ Ⅷ", "İstanbul ıI", "ſ 'ſ 's 'S", "K \u212a", "a\u00a0b\u2003c\u3000d\u1680e\u180ef",
    "zero\u200bwidth\u200djoin\ufeffbom", "\u0000nul\u0000", "\u0085nel\u2028ls\u2029ps", "\ufffd\ufffd", "\U0010ffff", "▁▁ ▁a", "a▁b", "<s>", "</s>",
    "<s>Hello</s>", " <s> Hello <s> ", "<unk>", "a<unk>b", "<|endoftext|>", "one<|endoftext|>two", "<|endoftext", "<|im_start|>user\nhi<|im_end|>",
    "<|begin_of_text|>x", "<0x0A>", "<0xZZ>", "[INST] hi [/INST]", "...", "…", "!!!???", "(a|b)[c]{d}", "foo.bar,baz;qux", "snake_case CamelCase",
    "https://example.org/a?b=c&d=e#f", "user@example.org", "ａｂｃ１２３", "ǅ ǆ Ǆ", "a" * 60, "ab" * 40, " " * 70, "na" * 30 + " batman", "۱۲۳ ٤٥٦",
    "word\u0301\u0302\u0303word", "\u0301leading mark", "tab\tseparated\tvalues", "mixed 中文 and English 混在", "CRLF\r\nline\r\n\r\n", "\n\n  \n", "end with space \n",
    "'", "''", "'s", "'t's", " 's", "\"quoted\"", "`code`", "~!@#$%^&*()_+-={}[]|\\:;<>,./?", "½⅓¼", "№ ™ © ®", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𠮷野家", "؟", "।", "a।b۔c،d",
    "<special>x<special>", "x <left> y", "x <right> y", "x <both> y", "xword word words word.", "normal NORMAL Normal", "<special><left> <both>",
    "Ａdded ａdded added", "  <left>", "<right>  ", "<both>  <both>", "word word", "word_word", "éword", "①word", "\u200dword"]


def texts():
    return HANDMADE + random_texts(60, 20)


def few_texts():
    """For the many small components: every second text."""
    return texts()[::2][:60]


def write(name, value):
    path = os.path.join(HERE, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=True, separators=(",", ":"), sort_keys=not name.endswith("tokenizer.json"))
        f.write("\n")


def training_lines():
    with open(os.path.join(HERE, "..", "..", "..", "LICENSE"), encoding="utf-8") as f:
        lines = f.read().split("\n")
    return lines + ["The cat sat on the mat. It's a word, isn't it? We'll see: 123 + 456 = 579.", "normal added word special",
                    "Der Hund läuft über die Straße. Où est la bibliothèque? El niño está aquí.", "Привет, мир! Как дела?",
                    "你好，世界！日本語のテキスト。", "नमस्ते दुनिया। مرحبا بالعالم،"] * 4


def train(tokenizer, vocab_size, alphabet, specials):
    tokenizer.train_from_iterator(training_lines(), trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet,
                                                                        special_tokens=specials, show_progress=False))
    return tokenizer


ADDED = [AddedToken("<special>", special=True, normalized=False), AddedToken("<left>", lstrip=True, normalized=False),
         AddedToken("<right>", rstrip=True, normalized=False), AddedToken("<both>", lstrip=True, rstrip=True, normalized=True),
         AddedToken("word", single_word=True, normalized=False), AddedToken("NORMAL", normalized=True), AddedToken("Added", normalized=True)]


def add_tokens(tokenizer):
    for token in ADDED:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])


def tiny_tokenizers():
    """Name -> tokenizer: between them every model option, added-token flag and kind of frame."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    out = {}

    t = tokenizers.Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    out["byte_level"] = train(t, 420, alphabet, ["<|endoftext|>"])

    t = tokenizers.Tokenizer(models.BPE())
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    t.decoder = decoders.ByteLevel()
    train(t, 400, alphabet, ["<s>", "</s>"])
    add_tokens(t)
    t.post_processor = processors.TemplateProcessing(single="<s> $A </s> </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    out["added_tokens"] = t

    t = tokenizers.Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(BLOOM_PATTERN), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    out["bloom"] = train(t, 420, alphabet, ["<unk>", "<s>", "</s>", "<pad>"])

    t = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    train(t, 420, alphabet, ["<s>"])
    # A whole word that the merges cannot make shows whether ignore_merges is honoured.
    state = json.loads(t.to_str())
    state["model"]["vocab"]["\u0120batman"] = len(state["model"]["vocab"])
    t = tokenizers.Tokenizer.from_str(json.dumps(state))
    t.post_processor = processors.Sequence([processors.ByteLevel(), processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])])
    out["ignore_merges"] = t

    t = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    train(t, 600, [], ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)])
    state = json.loads(t.to_str())
    # The byte tokens are part of the vocabulary, not tokens to find in text.
    state["added_tokens"] = state["added_tokens"][:3]
    t = tokenizers.Tokenizer.from_str(json.dumps(state))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    out["byte_fallback"] = t

    for name, fuse in [("fuse_unk", True), ("plain_unk", False)]:
        t = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=fuse, continuing_subword_prefix="##", end_of_word_suffix="</w>"))
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Digits(individual_digits=True)])
        t.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], continuing_subword_prefix="##", end_of_word_suffix="</w>",
                                      show_progress=False)
        t.train_from_iterator([line for line in training_lines() if line.isascii()], trainer)
        out[name] = t

    for name, byte_fallback in [("unigram", False), ("unigram_bytes", True)]:
        t = tokenizers.Tokenizer(models.Unigram())
        t.normalizer = normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
        t.pre_tokenizer = pre_tokenizers.Metaspace()
        t.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]) if byte_fallback else decoders.Metaspace()
        bytes_ = [f"<0x{i:02X}>" for i in range(256)] if byte_fallback else []
        t.train_from_iterator([line for line in training_lines() if line.isascii()], trainers.UnigramTrainer(
            vocab_size=300 + len(bytes_), special_tokens=["<s>", "<unk>"] + bytes_, unk_token="<unk>", show_progress=False))
        state = json.loads(t.to_str())
        state["model"]["byte_fallback"] = byte_fallback
        state["added_tokens"] = state["added_tokens"][:2]
        out[name] = tokenizers.Tokenizer.from_str(json.dumps(state))

    t = tokenizers.Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    out["no_decoder"] = train(t, 300, [], ["[CLS]", "[SEP]"])
    return out


def golden(tokenizer, cases):
    """What the library makes of `cases`: ids with and without the frame, texts with and without special tokens."""
    result = []
    for text in cases:
        ids = tokenizer.encode(text).ids
        result.append({"ids": ids, "plain_ids": tokenizer.encode(text, add_special_tokens=False).ids,
                       "text": tokenizer.decode(ids, skip_special_tokens=True), "full_text": tokenizer.decode(ids, skip_special_tokens=False)})
    return result


def id_soups(tokenizer, rng):
    """Random ids, as an untrained model would make them, and their text: broken characters included."""
    soups = []
    for _ in range(60):
        ids = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(rng.randrange(1, 30))]
        soups.append({"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True)})
    return soups


def pre_tokenizer_cases():
    regex = tokenizers.Regex
    p = pre_tokenizers
    configs = [p.ByteLevel(add_prefix_space=True), p.ByteLevel(add_prefix_space=False), p.ByteLevel(add_prefix_space=False, use_regex=False),
               p.Whitespace(), p.WhitespaceSplit(), p.Digits(), p.Digits(individual_digits=True), p.CharDelimiterSplit("a"),
               p.Metaspace(), p.Metaspace(prepend_scheme="first"), p.Metaspace(prepend_scheme="never"), p.Metaspace(split=False),
               p.Split(regex(BLOOM_PATTERN), "isolated"), p.Split(regex(LLAMA3_PATTERN), "isolated"), p.Split(regex(LLAMA3_PATTERN), "removed", invert=True),
               p.Sequence([p.Split(regex("\\p{N}{1,3}"), "isolated"), p.Split(regex("[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
                           p.Split(regex("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
                                         " ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"), "isolated")]),
               p.Sequence([p.Punctuation("contiguous"), p.ByteLevel(add_prefix_space=False), p.Digits(), p.Split(regex("[0-9][0-9][0-9]"), "isolated")]),
               p.Sequence([p.WhitespaceSplit(), p.Metaspace(prepend_scheme="first")])]
    behaviors = ["isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous"]
    configs += [p.Punctuation(b) for b in behaviors]
    for pattern in [" ", "a", regex("\\s"), regex("\\w+"), regex("\\d?"), regex("(?i)A|\\b")]:
        configs += [p.Split(pattern, b, invert=i) for b in behaviors for i in (False, True)]
    # Oniguruma's reading where it differs from PCRE2's: \h is a hex digit, {n,m}+ repeats, {,n} starts at 0, . takes \r.
    for pattern in ["\\w", "\\W+", "\\S+", "[\\S]+", "[^\\s\\d]+", "[\\w-]+", "[a-c[x-z]]+", "[^[aeiou]\\s]+", "\\p{N}{2}+", "l{,2}o", "l{2}?o",
                    "(?>a+)b", "a++", "(?<=a)b", "(?<!a)b", "^.", ".$", ".+", "\\Aa", "\\p{Han}+", "\\p{^L}+", "\\P{L}+", "[\\p{Latin}\\p{Greek}]+",
                    "\\x{41}|\\u0042", "(?i:ß|k|s)", "[\\n\\r\\t\\x20]+", "\\D+", "a{b", "\\p{Lu}\\p{Ll}*", "(a)(b)"]:
        configs.append(p.Split(regex(pattern), "isolated"))
    return [{"config": json.loads(c.__getstate__()), "pieces": [[s for s, _ in c.pre_tokenize_str(t)] if t else [] for t in few_texts()]} for c in configs]


def protobuf_fields(message):
    """(number, bytes) of the length-delimited fields of a protobuf message."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = varint()
        if tag & 7 == 0:
            varint()
            continue
        size = {1: 8, 5: 4}.get(tag & 7) or varint()
        yield tag >> 3, message[at:at + size]
        at += size


def small_charsmap():
    """The character map of a model trained with a few rules, among them one on a whole cluster and one that deletes."""
    rules = {"A": "a", "\u00e9": "e", "e\u0301": "E", "\ufb01": "fi", "\u3000": " ", "\u200b": "", "\t": " ", "\uff21": "A", "12": "one two"}
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as tsv:
        for source, target in rules.items():
            tsv.write(" ".join(f"{ord(c):X}" for c in source) + "\t" + " ".join(f"{ord(c):X}" for c in target) + "\n")
        tsv.flush()
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(training_lines()), model_writer=model, minloglevel=2, num_threads=1,
                                                 model_type="unigram", vocab_size=300, normalization_rule_tsv=tsv.name)
    normalizer_spec = dict(protobuf_fields(model.getvalue()))[3]
    return dict(protobuf_fields(normalizer_spec))[2]


def normalizer_cases():
    regex = tokenizers.Regex
    n = normalizers
    configs = [n.NFC(), n.NFD(), n.NFKC(), n.NFKD(), n.Lowercase(), n.StripAccents(), n.Strip(), n.Strip(left=False), n.Strip(right=False),
               n.Prepend("▁"), n.Replace(" ", "▁"), n.Replace(regex("\\s+"), " "), n.Replace(regex("a*"), "-"), n.ByteLevel(),
               n.Sequence([n.NFD(), n.StripAccents(), n.Lowercase()]), n.Precompiled(small_charsmap())]
    return [{"config": json.loads(c.__getstate__()), "texts": [c.normalize_str(t) for t in few_texts()]} for c in configs]


def decode_or_none(decoder, tokens):
    try:
        return decoder.decode(tokens)
    except BaseException:  # Strip panics on a token shorter than its counts
        return None


def decoder_cases():
    d = decoders
    rng = random.Random(7)
    spellings = ["▁", "▁a", "a", " ", "  b ", "▁▁c", "<0x41>", "<0xE4>", "<0xBD>", "<0xA0>", "<0xFF>", "<0x0a>", "Ġthe", "Ġ", "ä", "½", "ł", "日", "</w>", "x</w>",
                 "x y", "é", "<s>", "ĠðŁĺ", "ģ", "e"]
    runs = [[rng.choice(spellings) for _ in range(rng.randrange(1, 9))] for _ in range(150)] + [["<0xE4>", "<0xBD>", "<0xA0>"], ["<0xE4>", "a"]]
    configs = [d.ByteLevel(), d.ByteFallback(), d.Fuse(), d.Metaspace(), d.Metaspace(prepend_scheme="never"), d.Replace("▁", " "),
               d.Replace(tokenizers.Regex("[ab]"), "<>"), d.Strip(" ", 1, 0), d.Strip(" ", 0, 2), d.Strip("a", 1, 0),
               d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)]),
               d.Sequence([d.ByteFallback(), d.Fuse(), d.Strip(" ", 2, 1), d.Replace("a", "aa")])]
    cases = []
    for c in configs:
        state = json.loads(c.__getstate__())
        cases.append({"config": state, "cases": [{"tokens": r, "text": t} for r in runs if (t := decode_or_none(c, r)) is not None]})
    return cases


def train_sentencepiece(folder, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(training_lines()), model_writer=model, minloglevel=2, num_threads=1, **options)
    os.makedirs(os.path.join(HERE, folder), exist_ok=True)
    with open(os.path.join(HERE, folder, "tokenizer.model"), "wb") as f:
        f.write(model.getvalue())


def sentencepiece_golden(path, cases, rng):
    model = sentencepiece.SentencePieceProcessor(model_file=path)
    soups = [[rng.randrange(model.get_piece_size()) for _ in range(rng.randrange(1, 30))] for _ in range(60)]
    return {"bos": model.bos_id(), "cases": [{"plain_ids": model.encode(t), "text": model.decode(model.encode(t))} for t in cases],
            "soups": [{"ids": s, "text": model.decode(s)} for s in soups]}


YUAN_TOKENS = ["<eod>", "<sep>", "<pad>", "<mask>", "<predict>", "<FIM_SUFFIX>", "<FIM_PREFIX>", "<FIM_MIDDLE>", "<commit_before>", "<commit_msg>",
               "<commit_after>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<empty_output>"]
YUAN_TEXTS = ["a<sep>b", "Who are you?<sep>", "<sep>", "", "<sep><sep> x", "one<n>two<sep>three<eod>", "<FIM_PREFIX>def f():<FIM_SUFFIX>\n<FIM_MIDDLE>",
              "<mask> <predict>", "<eo<eod>d>", "<eod", "北京是中国的首都<sep>是的。<eod>", "a <sep> b", "<s></s><unk>", "<commit_msg>fix<commit_after>", "\U0001f600<pad>\U0001f600",
              "<empty_output><jupyter_start>x"]


def yuan_golden(path):
    """What lies between special tokens is a text of its own to sentencepiece; those that are no pieces come behind the pieces, in order."""
    model = sentencepiece.SentencePieceProcessor(model_file=path)
    ids = {}
    for token in YUAN_TOKENS:
        piece = model.piece_to_id(token)
        is_piece = model.id_to_piece(piece) == token
        ids[token] = piece if is_piece else model.get_piece_size() + sum(i >= model.get_piece_size() for i in ids.values())
    pattern = re.compile("(" + "|".join(map(re.escape, sorted(YUAN_TOKENS, key=len, reverse=True))) + ")")
    cases = []
    for text in YUAN_TEXTS:
        parts = [part for part in pattern.split(text) if part]
        cases.append({"input": text, "ids": [i for part in parts for i in ([ids[part]] if part in ids else model.encode(part))],
                      "text": "".join(part if part in ids else model.decode(model.encode(part)) for part in parts),
                      "plain": "".join(model.decode(model.encode(part)) for part in parts if part not in ids)})
    return {"tokens": ids, "cases": cases}


CHATGLM_TEXTS = ["a  b", " ", "   ", "\t", "\n\n\t x", " " * 80 + "x" + " " * 165 + "y", "a<n>b<|tab|>c<|blank_2|>d<|blank_81|>e", "<n", "<|blank_3", "<<n>",
                 "if x:\n\tif y:\n        return  1\n", "\u3000\u4f60 \u597d\n"]


def chatglm_golden(path, cases):
    """ChatGLM-6B's SPTokenizer (tokenization_chatglm.py): white space as pieces around a SentencePiece model."""
    model = sentencepiece.SentencePieceProcessor(model_file=path)
    blanks = [(" " * i, f"<|blank_{i}|>") for i in range(80, 1, -1)]
    rules = [("\n", "<n>"), ("\t", "<|tab|>")] + blanks
    out = []
    for case in cases:
        text = case
        for plain, piece in rules:
            text = text.replace(plain, piece)
        ids = model.encode(text)
        text = model.decode(ids)
        for plain, piece in rules:
            text = text.replace(piece, plain)
        out.append({"input": case, "ids": ids, "text": text})
    return out


def opt_folder(tokenizer):
    """vocab.json and merges.txt as the early OPT repositories have them; the oracle is transformers."""
    import transformers
    folder = os.path.join(HERE, "opt")
    os.makedirs(folder, exist_ok=True)
    state = json.loads(tokenizer.to_str())
    vocab = dict(state["model"]["vocab"])
    for token in ["<pad>", "</s>"]:
        vocab[token] = len(vocab)
    with open(os.path.join(folder, "vocab.json"), "w", encoding="utf-8") as f:
        json.dump(vocab, f)
    with open(os.path.join(folder, "merges.txt"), "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in state["model"]["merges"]))
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as f:
        json.dump({"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_prefix_space": False, "bos_token": "</s>", "eos_token": "</s>",
                   "unk_token": "</s>", "pad_token": "<pad>"}, f)
    with tempfile.TemporaryDirectory() as work:
        shutil.copytree(folder, work, dirs_exist_ok=True)
        oracle = transformers.AutoTokenizer.from_pretrained(work)
        write("opt/golden.json", [{"ids": oracle(t)["input_ids"], "plain_ids": oracle(t, add_special_tokens=False)["input_ids"]} for t in texts()])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the test data folder, for the goldens of real tokenizers")
    arguments = parser.parse_args()

    write("texts.json", texts())
    write("pre_tokenizers.json", pre_tokenizer_cases())
    write("normalizers.json", normalizer_cases())
    write("decoders.json", decoder_cases())
    tiny = tiny_tokenizers()
    for name, tokenizer in tiny.items():
        write(f"{name}/tokenizer.json", json.loads(tokenizer.to_str()))
        write(f"{name}/golden.json", {"cases": golden(tokenizer, texts()), "soups": id_soups(tokenizer, random.Random(3))})
    opt_folder(tiny["byte_level"])
    train_sentencepiece("spm_bpe", model_type="bpe", vocab_size=500, byte_fallback=True, character_coverage=0.99, normalization_rule_name="identity",
                        remove_extra_whitespaces=False)
    train_sentencepiece("spm_unigram", model_type="unigram", vocab_size=300, character_coverage=0.98, user_defined_symbols=["<sep>"],
                        normalization_rule_name="identity")
    for name in ["spm_bpe", "spm_unigram"]:
        write(f"{name}/golden.json", sentencepiece_golden(os.path.join(HERE, name, "tokenizer.model"), texts(), random.Random(5)))

    if arguments.data is None:
        return
    root = os.path.join(arguments.data, "tokenizers")
    few = HANDMADE + random_texts(60, 21)
    write("real/texts.json", few)
    for name, file in [("gpt2", "tokenizer.json"), ("llama3", "tokenizer.json"), ("qwen2", "tokenizer.json"), ("gptneox", "20B_tokenizer.json"),
                       ("llama2", "tokenizer.json")]:
        tokenizer = tokenizers.Tokenizer.from_file(os.path.join(root, name, file))
        write(f"real/{name}.json", [{"ids": tokenizer.encode(t).ids, "text": tokenizer.decode(tokenizer.encode(t).ids)} for t in few])
    for name in ["llama2", "baichuan2", "chatglm2", "yuan2"]:
        write(f"real/{name}_model.json", sentencepiece_golden(os.path.join(root, name, "tokenizer.model"), few, random.Random(5)))
    write("real/yuan2_tokens.json", yuan_golden(os.path.join(root, "yuan2", "tokenizer.model")))
    write("real/chatglm_model.json", chatglm_golden(os.path.join(root, "chatglm", "ice_text.model"), CHATGLM_TEXTS + few))
    write("real/stories260K_model.json",
          sentencepiece_golden(os.path.join(arguments.data, "models/llama-stories260K/tokenizer.model"), few, random.Random(5)))


if __name__ == "__main__":
    main()
