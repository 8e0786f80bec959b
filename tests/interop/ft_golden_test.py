"""FasterTransformer's own converters and llmctl write the same bytes for the models of tests/golden.

tests/golden/ft holds what the original scripts wrote; its README lists where they are wrong.
"""
import hashlib
import json

from harness import GOLDEN, Checks, llmctl

# The script writes this head transposed (bloom-untied), twice (bloom-equal-head) or not at all.
HEAD_DIFFERS = {"bloom-untied", "bloom-equal-head", "gpt2-inner"}


def check(recorded):
    def compare(_rng, folder):
        llmctl("convert", GOLDEN / "families" / recorded["model"], folder / "out", "--to", "ft",
               "--tp", recorded["tp"], "--dtype", recorded["dtype"], "--ft-exact",
               "--model-name", recorded["model"])
        directory = folder / "out" / f"{recorded['tp']}-gpu"
        found = {path.name: path.read_bytes() for path in directory.iterdir()}
        assert found.pop("config.ini").decode() == recorded["config_ini"]
        files = recorded["files"]
        if recorded["model"] in HEAD_DIFFERS:
            found.pop("model.lm_head.weight.bin", None)
            files.pop("model.lm_head.weight.bin", None)
        assert set(found) == set(files), sorted(set(found) ^ set(files))
        product = recorded["model"] == "opt-350m"
        wrong = []
        for name, (size, sha256, _xxh3) in files.items():
            if product and name in ("model.wte.bin", "model.lm_head.weight.bin"):
                assert len(found[name]) == size, name
            elif hashlib.sha256(found[name]).hexdigest() != sha256:
                wrong.append(name)
        assert not wrong, wrong
    return compare


def main():
    checks = Checks()
    for path in sorted((GOLDEN / "ft").glob("*.json")):
        checks.run(f"ft golden {path.stem}", check(json.loads(path.read_text())))
    checks.finish()


if __name__ == "__main__":
    main()
