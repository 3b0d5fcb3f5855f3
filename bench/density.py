"""Many containers alive at once: what they cost, and whether others still start as fast.

    python bench/density.py [--levels 10,1000,2000] [--count N] [--concurrency N] [--idle SECONDS]
                            [--rounds R] [--json FILE]

One craterun supervisor, with logs and records on tmpfs, keeps containers alive that sleep.  At each
level: the rate of N further ones that run /bin/true, from start to end; that of floor, a C program
that makes the same system calls and keeps nothing, which shows how much slower the kernel itself
has become; the rate of starts alone, of N further ones that stay meanwhile; memory of keeper and
supervisor; their processor time while nothing happens.  Needs root and gcc.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# Run as a file: the modules beside it are found, and this checkout's craterun.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.ground import (
    BenchError,
    Place,
    craterun_state,
    exit_on_signals,
    session,
    settle,
    tmpfs_place,
)
from bench.peers import HERE, Bench, contenders, craterun_env


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description="many containers alive at once")
    parser.add_argument("--levels", type=numbers, default=[10, 1000, 2000], help="ascending")
    parser.add_argument("--count", type=int, default=200, help="containers per rate")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--idle", type=float, default=30.0, help="seconds in which nothing happens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the raw numbers to this file")
    options = parser.parse_args(arguments)
    if options.levels != sorted(set(options.levels)) or options.levels[0] < 1:
        parser.error("levels ascend from 1 or more")
    return options


def levels(
    process: subprocess.Popen[str], bench: Bench, options: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """What the script says of each level, with the rate of floor beside it."""
    assert process.stdin is not None
    assert process.stdout is not None
    floor = contenders()["floor"]
    for _ in options.levels:
        if not (said := process.stdout.readline()):
            process.wait()
            return
        line = json.loads(said)
        settle()
        seconds = floor.seconds(bench, options.count, options.concurrency)
        yield line | {"floor_per_second": options.count / seconds}
        process.stdin.write("\n")
        process.stdin.flush()


def one_round(place: Place, bench: Bench, options: argparse.Namespace) -> list[dict[str, object]]:
    """Go through all levels once."""
    script = HERE / "_craterun_density.py"
    sizes = [str(options.count), str(options.concurrency), str(options.idle)]
    with craterun_state(place.path) as state:
        command: list[str | Path] = [sys.executable, script, bench.rootfs, state, *sizes]
        command.append(",".join(map(str, options.levels)))
        with session(command, env=craterun_env()) as process:
            return list(levels(process, bench, options))


def table(rounds: Sequence[Sequence[dict[str, object]]]) -> str:
    """Medians over the rounds; memory for each container is what came with those beyond level 1."""
    lines = [
        f"{'alive':>6}{'starts/s':>10}{'of first':>10}{'runs/s':>10}{'of first':>10}"
        f"{'floor/s':>10}{'of first':>10}"
        f"{'PSS MiB':>10}{'KiB each':>10}{'idle ms':>10}"
    ]

    def median(level: int, key: str) -> float:
        return statistics.median(_total(one[level][key]) for one in rounds)

    base = median(0, "pss_bytes")
    for level in range(len(rounds[0])):
        alive = int(median(level, "alive"))
        more = alive - int(median(0, "alive"))
        rates = "".join(
            f"{median(level, kind):10.0f}{median(level, kind) / median(0, kind):10.2f}"
            for kind in ("staying_per_second", "per_second", "floor_per_second")
        )
        memory = median(level, "pss_bytes")
        each = f"{(memory - base) / more / 1024:.1f}" if more else "-"
        idle = median(level, "idle_processor_seconds") * 1000
        lines.append(f"{alive:6d}{rates}{memory / 2**20:10.1f}{each:>10}{idle:10.1f}")
    return "\n".join(lines)


def _total(value: object) -> float:
    """A number, or the sum over both processes."""
    if isinstance(value, dict):
        return float(sum(value.values()))
    assert isinstance(value, (int, float))
    return float(value)


def main() -> int:
    """Measure, and print the table."""
    options = parse()
    exit_on_signals()
    if os.geteuid() != 0:
        raise SystemExit("the benchmark of density needs root")
    if reason := contenders()["floor"].missing():
        raise SystemExit(f"floor cannot be measured: {reason}")
    rounds: list[list[dict[str, object]]] = []
    with tmpfs_place() as place:
        bench = Bench(work=place.path, cgroup="")
        bench.prepare()
        contenders()["floor"].seconds(bench, 1, 1)
        for number in range(options.rounds):
            settle()
            found = one_round(place, bench, options)
            if len(found) < len(options.levels):
                raise BenchError("the supervisor has ended early")
            rounds.append(found)
            for line in found:
                print(f"round {number + 1}: {json.dumps(line)}", file=sys.stderr, flush=True)
    print(table(rounds))
    if options.json is not None:
        options.json.write_text(json.dumps(rounds) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
