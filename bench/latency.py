"""From a byte written inside a container to the byte on the reader's side.

    python bench/latency.py [--stamps N] [--interval MICROSECONDS] [--rounds R]
                            [--only NAME,...] [--json FILE]

A C program (stamps.c) writes the time, a line at a time, at leisure; another one
reads what arrives and notes how old it is.  Between the two there is

    pipe, tty              nothing but a pipe, or a pseudoterminal
    run, run-tty           craterun run --attach, and -it
    attach-tty, logs       craterun attach to a terminal, and logs --follow
    podman-run, podman-attach-tty, podman-logs
                           the same of podman, with runc and the k8s-file log driver

in turn, round after round.  Needs root and a C compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import pty
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Run as a file: the modules beside it are found, and this checkout's craterun.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.ground import (
    BenchError,
    craterun_state,
    exit_on_signals,
    make_rootfs,
    own_cgroup,
    tmpfs_place,
)
from bench.peers import HERE, craterun_env
from bench.podman import podman, podman_missing

PATIENCE = 60.0
JOINING_SECONDS = 1.5
"""Nobody tells when a follower has begun to wait; those who were too late would be found out by
a first stamp that is very old."""


@dataclass(frozen=True)
class Job:
    """One run: so many stamps, so far apart, in this work directory."""

    work: Path
    stamps: int
    interval: int

    @property
    def rootfs(self) -> Path:
        """The root filesystem with the writer in /bin and its gate."""
        return self.work / "rootfs"

    @property
    def program(self) -> Path:
        """The writer and reader, on the host."""
        return self.rootfs / "bin/stamps"

    @property
    def inside(self) -> list[str]:
        """The command that writes, in a container."""
        return ["/bin/stamps", "write", str(self.stamps), str(self.interval), "/gate"]

    @property
    def outside(self) -> list[str]:
        """The same on the host."""
        gate = str(self.rootfs / "gate")
        return [str(self.program), "write", str(self.stamps), str(self.interval), gate]


def measured(
    job: Job, command: Sequence[str], *, terminal: bool, joining: bool, environment: dict[str, str]
) -> list[int]:
    """Run ``command`` with a reader behind it; the ages of all stamps, in nanoseconds."""
    if terminal:
        read_end, write_end = pty.openpty()
        tty.setraw(write_end)
    else:
        read_end, write_end = os.pipe()
    with tempfile.NamedTemporaryFile(dir=job.work) as ages, contextlib.ExitStack() as cleanup:
        reading = [str(job.program), "read", str(job.stamps), ages.name]
        reader = subprocess.Popen(reading, stdin=read_end)
        cleanup.callback(reader.kill)
        os.close(read_end)
        writer = subprocess.Popen(
            command,
            stdin=write_end if terminal else subprocess.DEVNULL,
            stdout=write_end,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        cleanup.callback(writer.kill)
        os.close(write_end)
        if joining:
            time.sleep(JOINING_SECONDS)
        with open(job.rootfs / "gate", "wb") as gate:  # waits for the writer to be there
            gate.write(b"\n")
        _, complaint = writer.communicate(timeout=PATIENCE)
        reader.wait(PATIENCE)
        if writer.returncode != 0:
            raise BenchError(f"{command[0]}: {complaint.decode(errors='replace').strip()}")
        result = [int(line) for line in Path(ages.name).read_text().split()]
    if len(result) != job.stamps:
        raise BenchError(f"{len(result)} of {job.stamps} stamps arrived")
    return result


def bare(job: Job, *, terminal: bool) -> list[int]:
    """No container, nobody in between."""
    environment = dict(os.environ)
    return measured(job, job.outside, terminal=terminal, joining=False, environment=environment)


CRATERUN = [sys.executable, "-m", "craterun"]


@contextlib.contextmanager
def craterun_environment(job: Job) -> Iterator[dict[str, str]]:
    """A state root of its own."""
    with craterun_state(job.work) as state:
        yield craterun_env() | {"CRATERUN_ROOT": str(state)}


def craterun_run(job: Job, *options: str, terminal: bool) -> list[int]:
    """craterun run with these options."""
    command = [*CRATERUN, "run", *options, "--rootfs", str(job.rootfs), "--", *job.inside]
    with craterun_environment(job) as environment:
        return measured(job, command, terminal=terminal, joining=False, environment=environment)


def craterun_joined(
    job: Job, started: Sequence[str], command: Sequence[str], *, terminal: bool
) -> list[int]:
    """A detached container, and a command that joins it."""
    start = ["run", "--detach", "--rm", *started, "--rootfs", str(job.rootfs), "--", *job.inside]
    with craterun_environment(job) as environment:
        said = subprocess.run(
            [*CRATERUN, *start], env=environment, stdout=subprocess.PIPE, check=True
        )
        join = [*CRATERUN, *command, said.stdout.decode().strip()]
        return measured(job, join, terminal=terminal, joining=True, environment=environment)


def podman_run(job: Job) -> list[int]:
    """podman run, attached to a pipe."""
    with own_cgroup(f"{job.work.name}-podman") as cgroup:
        start = podman(job.work, "run", cgroup, job.rootfs, ["--rm", "--attach", "stdout"])
        return measured(
            job, [*start, *job.inside], terminal=False, joining=False, environment=dict(os.environ)
        )


def podman_joined(
    job: Job, started: Sequence[str], command: Sequence[str], *, terminal: bool
) -> list[int]:
    """A detached container, and a command that joins it."""
    environment = dict(os.environ)
    with own_cgroup(f"{job.work.name}-podman") as cgroup:
        start = podman(job.work, "run", cgroup, job.rootfs, ["--detach", *started])
        said = subprocess.run([*start, *job.inside], stdout=subprocess.PIPE, check=True)
        container = said.stdout.decode().strip()
        join = [*podman(job.work), *command, container]
        try:
            return measured(job, join, terminal=terminal, joining=True, environment=environment)
        finally:
            remove = [*podman(job.work), "rm", "--force", container]
            subprocess.run(remove, stdout=subprocess.DEVNULL, check=False)


CONTENDERS: dict[str, Callable[[Job], list[int]]] = {
    "pipe": lambda job: bare(job, terminal=False),
    "tty": lambda job: bare(job, terminal=True),
    "run": lambda job: craterun_run(job, "--attach", terminal=False),
    "run-tty": lambda job: craterun_run(job, "-i", "-t", terminal=True),
    "attach-tty": lambda job: craterun_joined(job, ["--tty"], ["attach"], terminal=True),
    "logs": lambda job: craterun_joined(job, [], ["logs", "--follow"], terminal=False),
    "podman-run": podman_run,
    "podman-attach-tty": lambda job: podman_joined(job, ["--tty"], ["attach"], terminal=True),
    "podman-logs": lambda job: podman_joined(job, [], ["logs", "--follow"], terminal=False),
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="from a byte inside to the byte outside")
    parser.add_argument("--stamps", type=int, default=500, help="of one run")
    parser.add_argument("--interval", type=int, default=2000, help="microseconds in between")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CONTENDERS))
    parser.add_argument("--json", type=Path, help="write the raw numbers to this file")
    options = parser.parse_args(arguments)
    if unknown := set(options.only) - set(CONTENDERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))} (known: {', '.join(CONTENDERS)})")
    if min(options.stamps, options.rounds) < 1:
        parser.error("stamps and rounds begin at 1")
    return options


def prepare(job: Job) -> None:
    """Make the rootfs, with the program and the gate."""
    make_rootfs(job.rootfs)
    source = HERE / "stamps.c"
    subprocess.run(["cc", "-O2", "-Wall", "-static", "-o", job.program, source], check=True)
    os.mkfifo(job.rootfs / "gate")


def percentile(ages: Sequence[int], share: float) -> float:
    """In microseconds."""
    return sorted(ages)[min(len(ages) - 1, int(share * len(ages)))] / 1000


def main() -> int:
    """Measure, print medians and 99th percentiles, and say loudly what is missing."""
    options = parse()
    exit_on_signals()
    if os.geteuid() != 0 or shutil.which("cc") is None:
        raise SystemExit("the latency benchmark needs root and a C compiler")
    names = [name for name in CONTENDERS if name in options.only]
    missing: dict[str, str] = {}
    ages: dict[str, list[list[int]]] = {name: [] for name in names}
    with tmpfs_place() as place:
        job = Job(place.path, options.stamps, options.interval)
        prepare(job)
        if why := podman_missing(job.work, job.rootfs):
            missing = {name: why for name in names if name.startswith("podman")}
            print(f"!!! podman is MISSING from this run: {why}", file=sys.stderr, flush=True)
            names = [name for name in names if name not in missing]
        for turn in range(options.rounds + 1):  # the first one only fills the caches
            offset = turn % len(names)
            for name in (*names[offset:], *names[:offset]):
                seen = CONTENDERS[name](job)
                if turn:
                    ages[name].append(seen)
    machine = f"Linux {platform.release()}, {os.cpu_count()} CPUs"
    print(f"{machine}; {options.rounds} rounds of {options.stamps} stamps, microseconds")
    print(f"{'':18} median    p99   (medians of the rounds)")
    for name in names:
        everything = [age for seen in ages[name] for age in seen]
        rounds = " ".join(f"{statistics.median(seen) / 1000:.0f}" for seen in ages[name])
        print(
            f"{name:18} {percentile(everything, 0.5):6.1f} {percentile(everything, 0.99):6.0f}"
            f"   ({rounds})"
        )
    for one, other in (("run", "pipe"), ("run-tty", "tty")):
        if one in names and other in names:
            pairs = zip(ages[one], ages[other], strict=True)
            ratios = [statistics.median(a) / statistics.median(b) for a, b in pairs]
            print(f"{one} / {other}: {statistics.median(ratios):.2f}")
    if options.json is not None:
        report = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine,
            "stamps": options.stamps,
            "interval_us": options.interval,
            "missing": missing,
            "nanoseconds": ages,
        }
        options.json.write_text(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
