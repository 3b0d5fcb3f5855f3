"""From the kernel's exit of a container to whoever waits for it.

    python bench/exits.py [--count N] [--rate R] [--rounds R] [--json FILE]

N containers of one supervisor, with logs and records on tmpfs, end one by one, at R in a second.
Reported are percentiles of the time from the kernel's exit (bench/_craterun_exits.py tells where
that comes from) until a task that waits goes on: by then the output is complete, the cgroups are
removed and the final record is written.  Needs root, and a kernel with CONFIG_PROC_EVENTS.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Run as a file: the modules beside it are found, and this checkout's craterun.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.ground import (
    craterun_state,
    exit_on_signals,
    make_rootfs,
    session,
    settle,
    tmpfs_place,
)
from bench.peers import HERE, craterun_env
from craterun.bench.report import nearest_rank

COLUMNS = ("us", "exit_notice", "drain", "conclude")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="from the kernel's exit to the waiter")
    parser.add_argument("--count", type=int, default=500, help="containers in each round")
    parser.add_argument("--rate", type=float, default=100.0, help="exits in a second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the raw numbers to this file")
    return parser.parse_args(arguments)


def main() -> int:
    """Measure, and print the percentiles of every round."""
    options = parse()
    exit_on_signals()
    if os.geteuid() != 0:
        raise SystemExit("the benchmark of exits needs root")
    rounds: list[list[dict[str, float]]] = []
    with tmpfs_place() as place:
        rootfs = make_rootfs(place.path / "rootfs")
        for number in range(options.rounds):
            settle()
            with craterun_state(place.path) as state:
                command: list[str | Path] = [sys.executable, HERE / "_craterun_exits.py", rootfs]
                command += [state, str(options.count), str(options.rate)]
                with session(command, env=craterun_env()) as process:
                    said, _ = process.communicate()
            lines = [json.loads(line) for line in said.splitlines()]
            rounds.append(lines)
            print(f"round {number + 1}: {len(lines)} exits at {options.rate:g}/s")
            for column in COLUMNS:
                ordered = sorted(line[column] for line in lines)
                found = "  ".join(f"p{p} {nearest_rank(ordered, p):.0f}" for p in (50, 90, 99))
                name = "kernel's exit to waiter" if column == "us" else f"  of that, {column}"
                print(f"  {name:24} us: {found}  max {ordered[-1]:.0f}")
    if options.json is not None:
        options.json.write_text(json.dumps(rounds) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
