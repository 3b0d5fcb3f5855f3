"""Bytes per second through the pump: a container's stdout to its log.

    python bench/pump.py [--mebibytes N] [--line BYTES] [--rounds R] [--only NAME,...]
                         [--places tmpfs,disk] [--json FILE]

The same producer (busybox dd of /dev/zero in writes of 256 KiB, so that the
consumer is what limits it; with --line, of a file of lines of so many bytes each)
writes

    craterun  in a container, to the pump, to the container's log
    attach    the same with `craterun run --attach >file`, so that it is written twice
    podman    in a container of podman's, to conmon, to a log of the k8s-file driver
    cat       on the host, to `cat >file` on the same filesystem
    tee       on the host, to `tee log >file`, which writes it twice as attach does

in turn, and the medians over the rounds are compared.  The time of craterun
includes the container's start and end, as that of podman and of attach includes
the whole command's, and that of cat a shell's.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Run as a file: the modules beside it are found, and this checkout's craterun.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.ground import (
    PLACES,
    BenchError,
    craterun_state,
    exit_on_signals,
    make_rootfs,
    own_cgroup,
    session,
    settle,
    warm_memory,
)
from bench.peers import HERE, craterun_env, craterun_missing
from bench.podman import podman, podman_missing

MEBIBYTE = 1 << 20
BLOCK = 256 << 10
LINES_BYTES = 64 << 20


@dataclass(frozen=True)
class Job:
    """One run: so many bytes, in this work directory.

    :ivar line: bytes of a line, with its end; 0: bytes without any
    """

    work: Path
    size: int
    line: int = 0

    @property
    def rootfs(self) -> Path:
        """The root filesystem with the producer."""
        return self.work / "rootfs"

    def prepare(self) -> None:
        """Make the root filesystem, and what the producer reads."""
        make_rootfs(self.rootfs)
        if self.line:
            text = (b"0123456789abcdef" * self.line)[: self.line - 1] + b"\n"
            lines = (text * (LINES_BYTES // self.line + 1))[:LINES_BYTES]
            (self.rootfs / "lines").write_bytes(lines)

    def producer(self, root: str = "") -> str:
        """The shell command that writes the bytes.

        :param root: of where the shell runs
        """
        dd = f"{root}/bin/dd" if root else "dd"
        if not self.line:
            return f"{dd} if=/dev/zero bs={BLOCK} count={self.size // BLOCK} 2>/dev/null"
        once = f"{dd} if={root}/lines bs={BLOCK} 2>/dev/null"
        return f"for turn in $(seq {self.size // LINES_BYTES}); do {once}; done"


def through_craterun(job: Job) -> float:
    """Pump from a container to its log, and give the seconds it took."""
    script = HERE / "_craterun_pump.py"
    producer = ["/bin/sh", "-c", job.producer()]
    with craterun_state(job.work) as state, without_logs(state):
        start: list[str | Path] = [sys.executable, script, job.rootfs, state, str(job.size)]
        with session([*start, *producer], env=craterun_env()) as process:
            said, _ = process.communicate()
    report = json.loads(said)
    if report["logged"] < job.size:
        raise BenchError(f"the log has {report['logged']} of {job.size} bytes")
    return float(report["seconds"])


@contextlib.contextmanager
def without_logs(state: Path) -> Iterator[None]:
    """Remove the logs after use: those of all rounds together may be more than there is memory."""
    try:
        yield
    finally:
        for log in state.glob("*/*.log*"):
            log.unlink()


def timed(
    command: Sequence[str | Path], target: Path, size: int, env: Mapping[str, str] | None = None
) -> float:
    """Run a command that writes so many bytes to ``target``, and give the seconds it took."""
    warm_memory(2 * size)
    begin = time.perf_counter()
    with session(command, env=env) as process:
        process.wait()
    seconds = time.perf_counter() - begin
    if target.stat().st_size < size:
        raise BenchError(f"{target} has {target.stat().st_size} of {size} bytes")
    return seconds


def through_attach(job: Job) -> float:
    """Attach to a container with our output in a file, and give the seconds it took."""
    target = job.work / "attached"
    command: list[str | Path] = [
        sys.executable, "-m", "craterun", "run", "--attach", "--log-max-size", "0",
        "--rootfs", job.rootfs, "--", "/bin/sh", "-c", job.producer(),
    ]  # fmt: skip
    with craterun_state(job.work) as state, without_logs(state):
        env = {**craterun_env(), "CRATERUN_ROOT": str(state)}
        try:
            shell: list[str | Path] = ["sh", "-c", 'exec "$@" >"$0"', target, *command]
            return timed(shell, target, job.size, env=env)
        finally:
            target.unlink(missing_ok=True)


def through_podman(job: Job) -> float:
    """Have conmon write a log, and give the seconds it took."""
    target = job.work / "podman.log"
    options = ["--rm", "--attach", "stderr", "--log-opt", f"path={target}"]
    with own_cgroup(f"{job.work.name}-podman") as cgroup:
        command = podman(job.work, "run", cgroup, job.rootfs, options)
        try:
            return timed([*command, "/bin/sh", "-c", job.producer()], target, job.size)
        finally:
            target.unlink(missing_ok=True)


def through_cat(job: Job) -> float:
    """Let cat write a file, and give the seconds it took."""
    return through_pipeline(job, 'cat >"$0"')


def through_tee(job: Job) -> float:
    """Let tee write two files, and give the seconds it took."""
    return through_pipeline(job, 'tee "$0.copy" >"$0"')


def through_pipeline(job: Job, consumer: str) -> float:
    """Let a shell command write a file, $0 to it, and give the seconds it took."""
    target = job.work / "cat.log"
    shell = f"{{ {job.producer(str(job.rootfs))}; }} | {consumer}"
    try:
        return timed(["sh", "-c", shell, target], target, job.size)
    finally:
        for path in job.work.glob(f"{target.name}*"):
            path.unlink()


CONTENDERS: dict[str, Callable[[Job], float]] = {
    "craterun": through_craterun,
    "attach": through_attach,
    "podman": through_podman,
    "cat": through_cat,
    "tee": through_tee,
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""

    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    parser = argparse.ArgumentParser(description="bytes per second to a container's log")
    parser.add_argument("--mebibytes", type=int, default=512, help="output of one run")
    parser.add_argument("--line", type=int, default=0, help="bytes of a line; 0: no lines")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", type=words, default=list(CONTENDERS), help="contenders")
    parser.add_argument("--places", type=words, default=list(PLACES))
    parser.add_argument("--json", type=Path, help="write the raw numbers to this file")
    options = parser.parse_args(arguments)
    for chosen, known in ((options.only, CONTENDERS), (options.places, PLACES)):
        if unknown := set(chosen) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))} (known: {', '.join(known)})")
    if min(options.mebibytes, options.rounds) < 1:
        parser.error("sizes and rounds begin at 1")
    return options


def absent(names: Sequence[str]) -> dict[str, str]:
    """Give those of ``names`` that cannot take part, and why."""
    missing = {}
    if (why := craterun_missing()) is not None:
        missing = {name: why for name in ("craterun", "attach") if name in names}
    if "podman" in names:
        with PLACES["tmpfs"]() as place:
            make_rootfs(place.path / "rootfs")
            if (why := podman_missing(place.path, place.path / "rootfs")) is not None:
                missing["podman"] = why
    return missing


def measure(job: Job, names: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Run all contenders in turn, and give the bytes per second of each round."""
    job.prepare()
    rates: dict[str, list[float]] = {name: [] for name in names}
    # The first turn only warms up: it fills the caches.
    for turn in range(rounds + 1):
        offset = turn % len(names)
        for name in (*names[offset:], *names[:offset]):
            # What the run before left to be written must not slow this one.
            os.sync()
            settle()
            seconds = CONTENDERS[name](job)
            if turn > 0:
                rates[name].append(job.size / seconds)
                print(f"round {turn}: {name} {job.size / seconds / 1e6:.0f} MB/s", file=sys.stderr)
    return rates


def main() -> int:
    """Measure, print the rates and the ratio, and say loudly what is missing."""
    options = parse()
    exit_on_signals()
    if os.geteuid() != 0:
        raise SystemExit("the pump benchmark needs root")
    names = [name for name in CONTENDERS if name in options.only]
    missing = absent(names)
    for name, why in missing.items():
        print(f"!!! {name} is MISSING from this run: {why}", file=sys.stderr, flush=True)
    names = [name for name in names if name not in missing]
    if not names:
        raise SystemExit("nobody to measure")

    results: dict[str, dict[str, list[float]]] = {}
    where: dict[str, str] = {}
    for name in options.places:
        with PLACES[name]() as place:
            where[name] = str(place)
            job = Job(place.path, options.mebibytes * MEBIBYTE, options.line)
            results[name] = measure(job, names, options.rounds)

    machine = f"Linux {platform.release()}, {os.cpu_count()} CPUs"
    print(f"{machine}; {options.mebibytes} MiB a run, medians of {options.rounds} rounds")
    for name, rates in results.items():
        medians = {contender: statistics.median(values) for contender, values in rates.items()}
        cells = [f"{contender} {rate / 1e6:.0f} MB/s" for contender, rate in medians.items()]
        cells += [f"{contender} MISSING" for contender in missing]
        for ours, theirs in itertools.product(("craterun", "attach"), ("cat", "tee", "podman")):
            if {ours, theirs} <= medians.keys():
                cells.append(f"{ours}/{theirs} {medians[ours] / medians[theirs]:.2f}")
        print(f"  {where[name]}: {', '.join(cells)}")
    if options.json is not None:
        report = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine,
            "mebibytes": options.mebibytes,
            "rounds": options.rounds,
            "places": where,
            "missing": missing,
            "bytes_per_second": results,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
