"""Containers per second: craterun beside crun, runc, bwrap and the floor.

    python bench/throughput.py [--count N] [--rounds R] [--concurrency 1,8,32]
                               [--only NAME,...] [--places tmpfs,disk] [--limits]
                               [--json FILE]

All contenders run /bin/true in the same rootfs, interleaved: every round runs
each of them once, beginning with another one each time, and the median over
the rounds is reported.  Needs root.

With --limits every container gets a limit on memory, processes and processor
time (bwrap and floor get none, and say so), and the smallest limit on memory
that each runtime can run /bin/true with is looked for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Run as a file: the modules beside it are found, and this checkout's craterun.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.ground import PLACES, BenchError, Place, exit_on_signals, settle, warm_memory
from bench.peers import Bench, Contender, Limits, contenders

# One cell of the report: the rates of all rounds, of one contender.
Rates = dict[str, list[float]]
LIMITS = Limits(memory=64 << 20, pids=100, cpus=1.0)
# More than hundreds of namespaces on their way out take.
WARM = 512 << 20


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""

    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    def numbers(text: str) -> list[int]:
        return [int(word) for word in words(text)]

    parser = argparse.ArgumentParser(description="containers per second, beside peers")
    parser.add_argument("--count", type=int, default=200, help="containers per run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=numbers, default=[1, 8, 32])
    parser.add_argument("--only", type=words, default=list(contenders()), help="contenders")
    parser.add_argument("--places", type=words, default=list(PLACES))
    parser.add_argument("--limits", action="store_true", help="limit every container")
    parser.add_argument("--json", type=Path, help="write the raw numbers to this file")
    options = parser.parse_args(arguments)
    for chosen, known in ((options.only, contenders()), (options.places, PLACES)):
        if unknown := set(chosen) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))} (known: {', '.join(known)})")
    if min(options.count, options.rounds, *options.concurrency) < 1:
        parser.error("counts, rounds and concurrencies begin at 1")
    return options


def shout(text: str) -> None:
    """Say on stderr what nobody may overlook."""
    print(f"!!! {text}", file=sys.stderr, flush=True)


def measure(
    place: Place,
    field: Sequence[Contender],
    options: argparse.Namespace,
    failures: dict[str, str],
) -> dict[int, Rates]:
    """Measure all concurrencies in one place; a contender that fails drops out."""
    bench = Bench(work=place.path, cgroup="", limits=LIMITS if options.limits else Limits())
    bench.prepare()
    results: dict[int, Rates] = {}

    def rate(contender: Contender, count: int, concurrency: int) -> float | None:
        settle()
        warm_memory(WARM)
        try:
            return count / contender.seconds(bench, count, concurrency)
        except BenchError as error:
            failures[contender.name] = f"{place.name}, {concurrency} at a time: {error}"
            shout(f"{contender.name} FAILED: {failures[contender.name]}")
            return None

    for contender in field:
        # Warms the caches up, and finds out early what does not work at all.
        rate(contender, 8, 4)
    for concurrency in options.concurrency:
        rates: Rates = {}
        for turn in range(options.rounds):
            offset = turn % len(field)
            for contender in (*field[offset:], *field[:offset]):
                if contender.name in failures:
                    continue
                value = rate(contender, options.count, concurrency)
                if value is not None:
                    rates.setdefault(contender.name, []).append(value)
                    progress = f"{place.name} x{concurrency} round {turn + 1}"
                    print(f"{progress}: {contender.name} {value:.1f}/s", file=sys.stderr)
        results[concurrency] = rates
    return results


def smallest_memory(contender: Contender, place: Place) -> int:
    """Find the smallest limit in KiB with which one container runs; 0 if there is none."""
    page, enough = 4, 1 << 16

    def runs(kibibytes: int) -> bool:
        limits = Limits(memory=kibibytes << 10, pids=LIMITS.pids, cpus=LIMITS.cpus)
        try:
            contender.seconds(Bench(place.path, "", limits), 1, 1)
        except BenchError:
            return False
        return True

    if not runs(enough):
        return 0
    low, high = 0, enough  # high runs, low does not
    while high - low > page:
        middle = (low + high) // 2 // page * page
        low, high = (low, middle) if runs(middle) else (middle, high)
    return high


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return "  ".join([first.strip().ljust(widths[0]), *rest])


def table(
    results: dict[str, dict[int, Rates]], names: Sequence[str], absent: dict[str, str]
) -> str:
    """Lay out the rates, and how craterun's compare with everybody else's."""
    others = [name for name in names if name != "craterun"]
    head = ["containers/s", *names, *(f"craterun/{name}" for name in others)]
    lines = [head]
    for place, by_concurrency in results.items():
        for concurrency, rates in by_concurrency.items():
            medians = {name: statistics.median(values) for name, values in rates.items()}
            line = [f"{place} x{concurrency}"]
            for name in names:
                line.append(f"{medians[name]:.1f}" if name in medians else absent.get(name, "-"))
            for name in others:
                both = "craterun" in medians and name in medians
                line.append(f"{medians['craterun'] / medians[name]:.2f}" if both else "-")
            lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(_row(line, widths) for line in lines)


def main() -> int:
    """Measure, print the table, and say loudly what is missing from it."""
    options = parse()
    exit_on_signals()
    if os.geteuid() != 0:
        raise SystemExit("the throughput benchmark needs root")
    chosen = [contender for name, contender in contenders().items() if name in options.only]
    absent: dict[str, str] = {}
    missing: dict[str, str] = {}
    for contender in chosen:
        if reason := contender.missing():
            missing[contender.name] = reason
            absent[contender.name] = "MISSING"
            shout(f"{contender.name} is MISSING from this run: {reason}")
    field = [contender for contender in chosen if contender.name not in missing]
    if not field:
        raise SystemExit("nobody to measure")

    results: dict[str, dict[int, Rates]] = {}
    where: dict[str, str] = {}
    failures: dict[str, str] = {}
    smallest: dict[str, int] = {}
    for name in options.places:
        with PLACES[name]() as place:
            where[name] = str(place)
            results[name] = measure(place, field, options, failures)
            if options.limits and not smallest:
                limited = (c for c in field if c.limits and c.name not in failures)
                smallest = {c.name: smallest_memory(c, place) for c in limited}
    absent |= dict.fromkeys(failures, "FAILED")

    names = [contender.name for contender in chosen]
    machine = f"Linux {platform.release()}, {os.cpu_count()} CPUs"
    versions = {contender.name: contender.version() for contender in field}
    print(f"{machine}; {options.count} containers a run, medians of {options.rounds} rounds")
    for name, described in where.items():
        print(f"  states on {name}: {described}")
    print(table(results, names, absent))
    if options.limits:
        without = ", ".join(c.name for c in field if not c.limits)
        print(f"limits on every container: {LIMITS}" + (f"; not on {without}" if without else ""))
        for name, kibibytes in smallest.items():
            print(f"smallest memory limit that runs /bin/true: {name} {kibibytes} KiB")
    for name, reason in (missing | failures).items():
        shout(f"{name}: {absent[name]}: {reason}")
    if options.json is not None:
        report = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine,
            "versions": versions,
            "count": options.count,
            "rounds": options.rounds,
            "places": where,
            "limits": LIMITS.resources() if options.limits else {},
            "smallest_memory_kib": smallest,
            "missing": missing,
            "failed": failures,
            "per_second": results,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
