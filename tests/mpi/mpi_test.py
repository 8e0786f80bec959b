#!/usr/bin/env python3
"""Shares conversions between processes that mpirun starts, on this host and on simulated ones: the bytes must be those of
one process, and a rank that fails or dies must end all, leave nothing half-published and a job that --resume continues.

Needs $LLMCTL_BINARY, and $LLMCTL_FAULT_SHIM (tests/faults) for the faults. What this machine cannot do is left out with a
line that says so. The simulated hosts are network namespaces with host names of their own, joined by a bridge; they need
root, iproute2 and unshare.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

LLMCTL = os.environ["LLMCTL_BINARY"]
SHIM = os.environ.get("LLMCTL_FAULT_SHIM", "")
ENV = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
           OMPI_MCA_btl_vader_single_copy_mechanism="none", OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_hwloc_base_binding_policy="none")
SOON = 40  # seconds in which all ranks have ended, on a machine with much else to do; on an idle one it takes two
failures = []


def leave_out(what, why):
    print(f"mpi_test: LEFT OUT: {what}: {why}", file=sys.stderr, flush=True)


def expect(condition, what):
    if not condition:
        failures.append(what)
        print(f"mpi_test: FAILED: {what}", file=sys.stderr, flush=True)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(command, place, env=ENV, timeout=60):
    return subprocess.run([str(word) for word in command], cwd=place, env=env, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=timeout)


def alone(place, *arguments):
    result = run([LLMCTL, *arguments], place)
    if result.returncode != 0:
        sys.exit(f"mpi_test: {arguments}: {result.stderr}")


def mpirun(place, ranks, *arguments, launcher=("mpirun",), **extra):
    return run([*launcher, "-n", ranks, *arguments], place, env=dict(ENV, **extra))


def our_lines(result):
    """What llmctl itself says, notes apart; mpirun adds lines of its own when a rank fails."""
    return [line for line in result.stderr.splitlines()
            if line.startswith("llmctl: ") and not line.startswith("llmctl: note: ")]


def expect_same(result, place, out, expected, what):
    expect(result.returncode == 0, f"{what}: exit {result.returncode}: {result.stderr}")
    if result.returncode == 0:
        expect(tree(place / out) == expected, f"{what}: other bytes than one process writes")
        expect(len(our_lines(result)) == 1 and "processes)" in our_lines(result)[0], f"{what}: {result.stderr}")
        expect(not list(place.glob(".*partial*")), f"{what}: a working directory is left")
        shutil.rmtree(place / out)


def make_sources(place):
    """Checkpoints of some megabytes, so that every rank has several units of work."""
    sizes = ["num_hidden_layers=8", "hidden_size=256", "num_attention_heads=8", "num_key_value_heads=8",
             "intermediate_size=512", "vocab_size=3000"]
    alone(place, "synth", "yuan", "--family", "yuan", *[word for size in sizes for word in ("--set", size)],
          "--to", "megatron", "--tp", "1", "--pp", "8")
    alone(place, "synth", "llama", "--family", "llama", *[word for size in sizes for word in ("--set", size)],
          "--to", "hf", "--max-shard-size", "3MB")


JOBS = {
    "split": ["reshard", "yuan", "out", "--tp", "8", "--pp", "1"],
    "merge": ["reshard", "yuan", "out", "--tp", "1", "--pp", "2"],
    "one file": ["reshard", "yuan", "out", "--tp", "1", "--pp", "1"],
    "to ft": ["convert", "llama", "out", "--to", "ft", "--tp", "4"],
    "to fp16": ["convert", "llama", "out", "--to", "hf", "--dtype", "fp16", "--max-shard-size", "2MB"],
    "to megatron": ["convert", "llama", "out", "--to", "megatron", "--tp", "2", "--pp", "4"],
}


def expected_bytes(place):
    expected = {}
    for name, job in JOBS.items():
        alone(place, *job)
        expected[name] = tree(place / "out")
        shutil.rmtree(place / "out")
    return expected


def test_same_bytes(place, expected):
    for ranks in (1, 2, 3, 5):
        for name, job in JOBS.items():
            if ranks in (3, 5) and name not in ("split", "to ft", "to fp16"):
                continue
            result = mpirun(place, ranks, LLMCTL, *job)
            if ranks == 1:
                result.stderr = result.stderr.replace("/s)", "/s, 1 processes)")
            expect_same(result, place, "out", expected[name], f"{name} by {ranks}")
    # As a large job: past the page cache where the file system can, and with the output read again.
    result = mpirun(place, 3, LLMCTL, *JOBS["split"], "--verify", "readback", LLMCTL_LARGE_JOB_BYTES="1")
    expect_same(result, place, "out", expected["split"], "a large job by 3")


def test_refusals(place):
    result = mpirun(place, 2, LLMCTL, "inspect", "yuan")
    expect(result.returncode == 2 and len(our_lines(result)) == 1 and not result.stdout, f"inspect by 2: {result}")
    result = mpirun(place, 3, LLMCTL, "reshard", "nowhere", "out", "--tp", "2")
    expect(result.returncode == 3 and len(our_lines(result)) == 1, f"no source by 3: {result}")
    result = mpirun(place, 3, LLMCTL, "reshard", "yuan", "out", "--tp", "7")
    expect(result.returncode == 2 and len(our_lines(result)) == 1, f"tp 7 by 3: {result}")
    result = mpirun(place, 2, LLMCTL, "convert", "llama", "out", "--to", "ft", "--dry-run")
    expect(result.returncode == 0 and result.stdout.count("bytes to write to") == 1, f"dry run by 2: {result}")
    # Ranks that were told different things.
    result = run(["mpirun", "-n", 1, LLMCTL, *JOBS["split"], ":", "-n", 1, LLMCTL, *JOBS["merge"]], place)
    expect(result.returncode == 4 and len(our_lines(result)) == 1 and "rank 1 (" in result.stderr,
           f"different ranks: {result}")
    # A launcher whose processes MPI does not see.
    result = run([LLMCTL, *JOBS["split"]], place, env=dict(ENV, SLURM_PROCID="0", SLURM_STEP_NUM_TASKS="2"))
    expect(result.returncode == 4 and "--mpi=pmix" in result.stderr, f"srun without PMIx: {result}")
    expect(not (place / "out").exists() and not list(place.glob(".*partial*")), "a refused job wrote something")


def with_fault(place, rank, fault):
    """A program that is llmctl, with a fault on one rank."""
    script = place / "faulty.sh"
    script.write_text(f"""#!/bin/sh
if [ "$OMPI_COMM_WORLD_RANK" = {rank} ]; then export LD_PRELOAD='{SHIM}' LLMCTL_FAULT='{fault}'; fi
exec '{LLMCTL}' "$@"
""")
    script.chmod(0o755)
    return script


def test_faults(place, expected, launcher=("mpirun",), where=""):
    cases = [(0, "write:60:ENOSPC"), (2, "write:200:ENOSPC"), (1, "sync:5:EIO"), (0, "write:150:KILL"), (2, "write:90:KILL")]
    for number, (rank, fault) in enumerate(cases if not where else cases[2:]):
        for extra in ([], ["--resume"]):
            what = f"{fault} on rank {rank}{where} {' '.join(extra)}"
            start = time.monotonic()
            result = mpirun(place, 3, with_fault(place, rank, fault), *JOBS["split"], *extra, launcher=launcher,
                            LLMCTL_JOURNAL_BYTES="1")
            expect(time.monotonic() - start < SOON, f"{what}: took {time.monotonic() - start:.0f} s to end")
            expect(not (place / "out").exists(), f"{what}: something was published")
            if fault.endswith("KILL"):
                expect(result.returncode not in (0, 5), f"{what}: exit {result.returncode}")
            else:
                expect(result.returncode == 4, f"{what}: exit {result.returncode}: {result.stderr}")
                lines = our_lines(result)
                expect(len(lines) == 1 and f"rank {rank} (" in lines[0], f"{what}: {result.stderr}")
                expect(extra != [] or not list(place.glob(".*partial*")), f"{what}: a working directory is left")
        journals = [path.read_text() for path in place.glob(".out.llmctl-partial/.llmctl-journal*")]
        has_units = any(" unit " in journal for journal in journals)
        # What is left goes on with another number of ranks, one among them.
        ranks = (2, 5, 1, 1, 4)[number]
        again = mpirun(place, ranks, LLMCTL, *JOBS["split"], "--resume", launcher=launcher)
        expect("continued:" in again.stderr or not has_units, f"{what}: nothing was continued: {again.stderr}")
        if ranks == 1:
            again.stderr = again.stderr.replace("/s)", "/s, 1 processes)")
        expect_same(again, place, "out", expected["split"], f"{what}, continued by {ranks}")


def test_interrupt(place, expected):
    for delay in (0.3, 0.5, 0.7):
        process = subprocess.Popen(["mpirun", "-n", "3", LLMCTL, *JOBS["split"], "--resume"], cwd=place, env=ENV,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            expect(False, f"interrupted after {delay} s: did not end")
        if (place / "out").exists():
            expect(tree(place / "out") == expected["split"], f"interrupted after {delay} s: half an output")
            shutil.rmtree(place / "out")
    result = mpirun(place, 2, LLMCTL, *JOBS["split"], "--resume")
    expect_same(result, place, "out", expected["split"], "after interrupts")


GRIDS = [(2, 1), (1, 2), (2, 2), (4, 1), (1, 4)]
PROMPT = ["--token-ids", "1,5,9,20,7,7,100"]


def make_models(place):
    """Small ones; the second has positions enough to be still at it when something happens."""
    for name, positions in (("model", 128), ("endless", 1000000)):
        sizes = ["num_hidden_layers=4", "hidden_size=64", "num_attention_heads=8", "num_key_value_heads=4",
                 "intermediate_size=128", "vocab_size=300", f"max_position_embeddings={positions}"]
        alone(place, "synth", name, "--family", "llama", *[word for size in sizes for word in ("--set", size)], "--to", "hf")
    result = run([LLMCTL, "run", "model", *PROMPT, "-n", "24"], place)
    alone(place, "run", "model", *PROMPT, "-n", "0", "--logits-file", "alone.npy")
    return result.stdout


def test_run(place, expected, grids, launcher=("mpirun",), where=""):
    """Processes are the ranks: the ids and the logits, bit for bit, are those of one rank."""
    for tp, pp in grids:
        what = f"run, tp {tp}, pp {pp}{where}"
        grid = ["run", "model", *PROMPT, "--tp", tp, "--pp", pp]
        result = mpirun(place, tp * pp, LLMCTL, *grid, "-n", "24", launcher=launcher)
        expect(result.returncode == 0 and result.stdout == expected, f"{what}: {result}")
        result = mpirun(place, tp * pp, LLMCTL, *grid, "-n", "0", "--logits-file", "shared.npy", launcher=launcher)
        expect(result.returncode == 0, f"{what}: {result}")
        if result.returncode == 0:
            expect((place / "shared.npy").read_bytes() == (place / "alone.npy").read_bytes(), f"{what}: other logits")
            (place / "shared.npy").unlink()


def test_run_batch(place):
    """Many requests of unequal lengths, drawn and searched with beams; only rank 0 reads and writes."""
    lines = [json.dumps({"token_ids": [i, 5, 9, 20][: 1 + i % 4], "max_new_tokens": 5 + i}) for i in range(9)]
    (place / "requests").write_text("".join(line + "\n" for line in lines))
    job = ["run", "model", "--data-file", "requests", "--batch-size", "4"]
    for what, flags in (("greedy", []), ("drawn", ["--temperature", "0.9", "--seed", "3"]), ("beams", ["--beams", "3"])):
        expected = run([LLMCTL, *job, *flags], place)
        expect(expected.returncode == 0 and len(expected.stdout.splitlines()) == len(lines), f"batch, {what}: {expected}")
        for tp, pp in ((2, 2), (1, 3)):
            result = mpirun(place, tp * pp, LLMCTL, *job, *flags, "--tp", tp, "--pp", pp)
            expect(result.returncode == 0 and result.stdout == expected.stdout, f"batch, {what}, tp {tp}, pp {pp}: {result}")


def test_run_refusals(place):
    for ranks, tp, pp, hint in ((4, 2, 1, "mpirun -n 2 llmctl run model --tp 2 --pp 1"), (2, 1, 1, "start it alone"),
                                (2, 2, 2, "mpirun -n 4 llmctl run model --tp 2 --pp 2")):
        result = mpirun(place, ranks, LLMCTL, "run", "model", *PROMPT, "--tp", tp, "--pp", pp)
        expect(result.returncode == 2 and len(our_lines(result)) == 1 and hint in result.stderr and not result.stdout,
               f"{ranks} processes for tp {tp}, pp {pp}: {result}")
    result = mpirun(place, 2, LLMCTL, "run", "model", "--token-ids", "1,999", "--tp", "2")
    expect(result.returncode == 2 and len(our_lines(result)) == 1, f"an id beyond the vocabulary: {result}")
    if SHIM:
        result = mpirun(place, 4, with_fault(place, 2, "read:3:EIO"), "run", "model", *PROMPT, "--tp", "2", "--pp", "2")
        expect(result.returncode in (3, 4) and len(our_lines(result)) == 1 and "rank 2 (" in result.stderr,
               f"a rank that cannot read: {result}")


def wait_for_end(pids):
    """Whether the processes end within seconds; one that nobody has asked how it ended has no command line any more."""
    def is_running(pid):
        try:
            return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() != b""
        except OSError:
            return False
    deadline = time.monotonic() + 5
    while any(is_running(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_run_deaths(place, launcher=("mpirun",), where=""):
    """A rank that is killed or interrupted while the model generates ends all."""
    script = place / "noted.sh"
    script.write_text(f"""#!/bin/sh
echo $$ > '{place}'/pid.$OMPI_COMM_WORLD_RANK
exec '{LLMCTL}' "$@"
""")
    script.chmod(0o755)
    for rank, how, code in ((0, signal.SIGKILL, 137), (3, signal.SIGKILL, 137), (1, signal.SIGTERM, 130)):
        what = f"rank {rank} ended by {how.name}{where}"
        with open(place / "ids", "w") as ids:
            process = subprocess.Popen([*launcher, "-n", "4", str(script), "run", "endless", *PROMPT, "--tp", "2", "--pp", "2",
                                        "-n", "900000", "--ignore-eos"], cwd=place, env=ENV, stdin=subprocess.DEVNULL,
                                       stdout=ids, stderr=subprocess.PIPE, text=True)
            deadline = time.monotonic() + 40
            while (place / "ids").stat().st_size < 8 and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
            expect(process.poll() is None, f"{what}: ended before that")
            pids = [int((place / f"pid.{r}").read_text()) for r in range(4)]
            start = time.monotonic()
            os.kill(pids[rank], how)
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
            expect(time.monotonic() - start < SOON, f"{what}: took {time.monotonic() - start:.0f} s to end")
            expect(process.returncode == code, f"{what}: exit {process.returncode}")
            expect(wait_for_end(pids), f"{what}: a process goes on")


class Hosts:
    """Network namespaces that mpirun takes for hosts."""

    COUNT = 3

    def __init__(self, place):
        self.place = place
        self.prefix = f"llmctl-{os.getpid()}-"
        self.names = [f"{self.prefix}{i}" for i in range(1, self.COUNT + 1)]
        self.switch = self.prefix + "switch"
        agent = place / "agent.sh"
        # mpirun calls it as it would call ssh: the host, then the command.
        agent.write_text(f"""#!/bin/sh
number=${{1##*.}}
shift
exec ip netns exec "{self.prefix}$number" unshare --uts sh -c 'hostname "$0"; eval "$@"' "host$number" "$@"
""")
        agent.chmod(0o755)
        self.agent = agent

    def __enter__(self):
        def ip(*words):
            subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
        try:
            for name in [self.switch, *self.names]:
                ip("netns", "add", name)
            ip("-n", self.switch, "link", "add", "name", "switch0", "type", "bridge")
            ip("-n", self.switch, "link", "set", "dev", "switch0", "up")
            for i, name in enumerate(self.names, 1):
                ip("-n", name, "link", "add", "name", "net0", "type", "veth", "peer", "name", f"port{i}", "netns",
                   self.switch)
                ip("-n", self.switch, "link", "set", "dev", f"port{i}", "master", "switch0", "up")
                ip("-n", name, "addr", "add", f"10.77.0.{i}/24", "dev", "net0")
                ip("-n", name, "link", "set", "dev", "net0", "up")
                ip("-n", name, "link", "set", "dev", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused):
        for name in [*self.names, self.switch]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def launcher(self, slots):
        """mpirun on the first host, with these slots on each."""
        hosts = ",".join(f"10.77.0.{i}:{n}" for i, n in enumerate(slots, 1))
        return ["ip", "netns", "exec", self.names[0], "unshare", "--uts", "sh", "-c", 'hostname host1; exec mpirun "$@"',
                "mpirun", "--host", hosts, "--mca", "plm_rsh_agent", str(self.agent), "--mca", "plm_rsh_no_tree_spawn",
                "1", "--mca", "oob_tcp_if_include", "net0", "--mca", "btl_tcp_if_include", "net0", "-x",
                "LLMCTL_JOURNAL_BYTES"]


def test_hosts(place, expected, ids):
    if os.geteuid() != 0:
        return leave_out("simulated hosts", "network namespaces need root")
    for tool in ("ip", "unshare"):
        if shutil.which(tool) is None:
            return leave_out("simulated hosts", f"there is no {tool}")
    try:
        with Hosts(place) as hosts:
            launcher = hosts.launcher((2, 2, 1))
            names = mpirun(place, 5, "hostname", launcher=launcher)
            expect(sorted(names.stdout.split()) == ["host1", "host1", "host2", "host2", "host3"], f"hosts: {names}")
            for name in ("split", "to ft"):
                result = mpirun(place, 5, LLMCTL, *JOBS[name], launcher=launcher)
                expect_same(result, place, "out", expected[name], f"{name} on three hosts")
            if SHIM:
                test_faults(place, expected, hosts.launcher((1, 1, 3)), " on three hosts")
            test_run(place, ids, [(2, 2), (1, 4)], hosts.launcher((2, 1, 1)), " on three hosts")
            test_run_deaths(place, hosts.launcher((2, 1, 1)), " on three hosts")
    except subprocess.CalledProcessError as error:
        leave_out("simulated hosts", f"{' '.join(error.cmd)}: {error.stderr.strip()}")


def test_slurm(place, expected, ids):
    """The same under srun, where a Slurm is at hand."""
    srun = ("srun", "-Q", "--overcommit", "--mpi=pmix")
    if shutil.which("srun") is None:
        return leave_out("srun", "there is no srun (slurm-wlm)")
    if run([*srun, "-n", "2", "true"], place).returncode != 0:
        return leave_out("srun", "it starts nothing here")
    result = mpirun(place, 3, LLMCTL, *JOBS["split"], launcher=srun)
    expect_same(result, place, "out", expected["split"], "split by srun")
    test_run(place, ids, [(2, 1), (2, 2)], launcher=srun, where=" by srun")
    result = mpirun(place, 3, LLMCTL, "run", "model", *PROMPT, "--tp", "2", launcher=srun)
    expect(result.returncode == 2 and len(our_lines(result)) == 1 and "srun -n 2 llmctl run" in result.stderr,
           f"3 processes of srun for tp 2: {result}")
    result = mpirun(place, 2, LLMCTL, "run", "model", *PROMPT, "--tp", "2", launcher=("srun", "-Q", "--overcommit", "--mpi=none"))
    expect(result.returncode == 4 and "--mpi=pmix" in result.stderr, f"srun without PMIx: {result}")


def main():
    if shutil.which("mpirun") is None:
        return leave_out("everything", "there is no mpirun (openmpi-bin)")
    with tempfile.TemporaryDirectory(prefix="llmctl-mpi-") as folder:
        place = pathlib.Path(folder)
        if mpirun(place, 2, "true").returncode != 0:
            return leave_out("everything", f"mpirun does not work here: {mpirun(place, 2, 'true').stderr}")
        make_sources(place)
        expected = expected_bytes(place)
        test_same_bytes(place, expected)
        test_refusals(place)
        test_interrupt(place, expected)
        if SHIM:
            test_faults(place, expected)
        else:
            leave_out("faults", "no LLMCTL_FAULT_SHIM")
        ids = make_models(place)
        test_run(place, ids, GRIDS)
        test_run_batch(place)
        test_run_refusals(place)
        test_run_deaths(place)
        test_hosts(place, expected, ids)
        test_slurm(place, expected, ids)
    if failures:
        sys.exit(f"mpi_test: {len(failures)} failures")
    print("mpi_test: everything as one process does it")


if __name__ == "__main__":
    main()
