"""What `craterun bench` has found out: data, percentiles, and the text that people read."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import msgspec

US = "\N{MICRO SIGN}s"
PHASES = (
    ("queue", "waiting to be let in"),
    ("prepare", "plan, state directory, cgroups"),
    ("request", "to the keeper; pipes"),
    ("clone", "clone3"),
    ("setup", "mounts, cgroups, credentials"),
    ("exec", "execve"),
    ("run", "the command"),
    ("exit_notice", "from the exit to the supervisor"),
    ("drain", "output to its end"),
    ("conclude", "cgroups removed, logs closed"),
)
START, TOTAL = "start", "total"
WHOLES = ((START, "asked, until it runs"), (TOTAL, "asked, until its end is on record"))


class Percentiles(msgspec.Struct, frozen=True):
    """Of many measurements; microseconds."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Percentiles:
        """By nearest rank. There must be at least one value."""
        ordered = sorted(values)
        return cls(*(nearest_rank(ordered, percent) for percent in (50, 90, 99)))


def nearest_rank(ordered: Sequence[float], percent: float) -> float:
    """The smallest of the ascending values that ``percent`` of them do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


class Level(msgspec.Struct, frozen=True):
    """Everything measured with so many containers at once.

    :ivar per_second: containers per second in each round, by contender
    :ivar latency_us: percentiles over all containers of all rounds: of each phase, of ``start``
        (from the call until the command was executed) and of ``total`` (until its end is on record)
    """

    jobs: int
    per_second: dict[str, list[float]]
    latency_us: dict[str, Percentiles]

    def rate(self, name: str) -> float | None:
        """The median over the rounds; None if that contender has none."""
        values = self.per_second.get(name)
        return statistics.median(values) if values else None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole benchmark.

    :ivar log_bytes_per_second: of each round: from a container into its log, and ``cat`` of the
        same bytes into a file beside it
    :ivar missing: contenders that were asked for and are not here, each with the reason
    :ivar failed: contenders that gave up, likewise; and ``log`` if that could not be measured
    """

    craterun: str
    kernel: str
    python: str
    processors: int
    state: str
    filesystem: str
    rootfs: str
    command: tuple[str, ...]
    limits: dict[str, str]
    count: int
    rounds: int
    levels: list[Level]
    log_bytes_per_second: dict[str, list[float]]
    versions: dict[str, str]
    missing: dict[str, str]
    failed: dict[str, str]

    @property
    def contenders(self) -> list[str]:
        """Those with at least one figure, craterun first."""
        return list(dict.fromkeys(name for level in self.levels for name in level.per_second))

    def best(self) -> Level:
        """The level with craterun's highest rate."""
        return max(self.levels, key=lambda level: level.rate("craterun") or 0.0)


def text(report: Report) -> str:
    """For people."""
    parts = [_head(report), _rates(report), *_latencies(report)]
    if logs := report.log_bytes_per_second:
        rows = [[name, f"{statistics.median(v) / 2**20:.0f}"] for name, v in logs.items()]
        parts.append("log, MiB per second\n" + _table([["", "median"], *rows]))
    return "\n\n".join(parts)


def _head(report: Report) -> str:
    limits = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in report.limits.items())
    lines = [
        f"craterun {report.craterun}, CPython {report.python}, Linux {report.kernel}, "
        f"{report.processors} processors",
        f"{' '.join(report.command)} in rootfs {report.rootfs}, {limits or 'no limits'}; "
        f"{report.count} containers a run, medians of {report.rounds} rounds",
        f"state on {report.filesystem} ({report.state})",
    ]
    return "\n".join(lines + [f"{name}: {version}" for name, version in report.versions.items()])


def _rates(report: Report) -> str:
    names = report.contenders
    others = [name for name in names if name != "craterun"]
    rows = [["at once", *names, *(f"craterun/{name}" for name in others)]]
    for level in report.levels:
        ours = level.rate("craterun")
        row = [str(level.jobs)]
        row += ["-" if (rate := level.rate(name)) is None else f"{rate:.0f}" for name in names]
        for name in others:
            theirs = level.rate(name)
            row.append(f"{ours / theirs:.2f}" if ours and theirs else "-")
        rows.append(row)
    return "containers per second\n" + _table(rows)


def _latencies(report: Report) -> Iterable[str]:
    shown = {level.jobs: level for level in (report.levels[0], report.best())}
    for jobs, level in shown.items():
        rows = [[f"{US}, {jobs} at once", "p50", "p90", "p99", ""]]
        for name, meaning in PHASES + WHOLES:
            if (found := level.latency_us.get(name)) is not None:
                figures = (f"{figure:.0f}" for figure in msgspec.structs.astuple(found))
                rows.append([name, *figures, f" {meaning}"])
        yield _table(rows, last_left=True)


def _table(rows: Sequence[Sequence[str]], *, last_left: bool = False) -> str:
    """Columns two blanks apart: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        if last_left:
            cells[-1] = row[-1]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
