"""What the interop tests share: finding and calling llmctl, counting what was checked, seeds."""
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import torch
import transformers

SOURCE = Path(os.environ.get("LLMCTL_SOURCE_DIR", Path(__file__).resolve().parents[2]))
BINARY = os.environ.get("LLMCTL_BINARY") or str(SOURCE / "build/dev/cli/llmctl")
GOLDEN = SOURCE / "tests" / "golden"
TEST_DATA = Path(os.environ.get("LLMCTL_TEST_DATA", SOURCE.parent / "shared" / "data"))


def quiet():
    """Silences progress bars and advice, and keeps torch to one thread: the models are tiny."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)


def llmctl(*arguments, expect=0):
    """Runs llmctl and returns its stdout; fails unless the exit code is `expect`."""
    command = [BINARY, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode != expect:
        raise AssertionError(f"{' '.join(command)}\nexit code {done.returncode}, expected {expect}\n"
                             f"stdout: {done.stdout[-2000:]}\nstderr: {done.stderr[-2000:]}")
    if expect not in (0, 1):
        lines = done.stderr.strip().splitlines()
        assert lines and lines[-1].startswith("llmctl: error: "), done.stderr
    return done.stdout


def llmctl_json(*arguments, expect=0):
    return json.loads(llmctl(*arguments, "--json", expect=expect))


class Checks:
    """Runs named checks, each in its own folder, reports every failure, and sets the exit status.

    A seed is drawn unless the first argument of the program gives one; it is always printed.
    Further arguments choose the checks whose names contain one of them.
    """

    def __init__(self):
        quiet()
        arguments = sys.argv[1:]
        self.seed = int(arguments.pop(0)) if arguments and arguments[0].isdigit() \
            else random.SystemRandom().randrange(1_000_000)
        self.only = arguments
        self.passed, self.failed = 0, []
        print(f"seed {self.seed} (pass it as the first argument to repeat this run)", flush=True)

    def run(self, name, check):
        """Calls check(rng, folder); the generator depends on the seed and the name alone."""
        if self.only and not any(word in name for word in self.only):
            return
        rng = random.Random(f"{self.seed} {name}")
        torch.manual_seed(rng.randrange(2**31))
        with tempfile.TemporaryDirectory(prefix="llmctl-interop-") as folder:
            try:
                check(rng, Path(folder))
                self.passed += 1
                print(f"ok      {name}", flush=True)
            except Exception as error:  # each check is on its own: report and go on
                self.failed.append(name)
                print(f"FAILED  {name}: {error}")
                while error.__cause__ is not None:
                    error = error.__cause__
                traceback.print_exception(error, limit=-2, chain=False, file=sys.stdout)
                sys.stdout.flush()

    def finish(self):
        print(f"{self.passed} passed, {len(self.failed)} failed (seed {self.seed})"
              + (": " + ", ".join(self.failed) if self.failed else ""))
        if not self.passed and not self.failed:
            sys.exit("no check has that name")
        sys.exit(1 if self.failed else 0)


@contextlib.contextmanager
def about(text):
    """Adds what was being looked at to a failure."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{text}: {error}") from error
