"""Writes the INI files of this folder: two as FasterTransformer's converters do, one of corner cases."""
import configparser
import pathlib

here = pathlib.Path(__file__).resolve().parent

gpt = configparser.ConfigParser()
gpt["gpt"] = {"model_name": "models/gpt2", "head_num": "12", "size_per_head": "64",
              "inter_size": str(4 * 768), "max_pos_seq_len": "1024", "num_layer": "12",
              "vocab_size": "50257", "start_id": "50256", "end_id": "50256",
              "weight_data_type": "fp16", "tensor_para_size": "2"}
with open(here / "gpt2.ini", "w") as f:
    gpt.write(f)

bloom = configparser.ConfigParser()
bloom["gpt"] = {"model_name": "bloom\nsecond line", "num_layer": "24", "inter_size": "4096",
                "tensor_para_size": "1", "weight_data_type": "fp32", "model_variant": "bloom-pre",
                "layernorm_eps": str(1e-5), "layernorm_type": "pre_layernorm",
                "has_positional_encoding": str(False), "use_attention_linear_bias": str(True)}
bloom["structure"] = {"gpt_with_moe": "0", "moe_layers": "[1, 3]"}
with open(here / "bloom.ini", "w") as f:
    bloom.write(f, space_around_delimiters=False)

(here / "quirks.ini").write_bytes(
    b"\xef\xbb\xbf; a comment line\r\n# another\r\n[Gpt] trailing words\r\nHead_Num = 0x10\r\n"
    b"octal = 010 ; eight\nblank_then_hash = 5 # five\nnegative = -12\ncolon: 7\nurl = http://a:1=2\n"
    b"glued=a;b\nspaced = a ;b\nempty =\neps=1E-05\nplus = +2\nyes = YES\noff = Off\none=1\n"
    b"continued = first\n  second ; note\n\tthird\n\n[ spaced section ]\nkey = 1\n[]\nkey = 2\n"
    b"long = " + b"x" * 150 + b"\n[last]\nno_newline = 3")
