"""stats: what containers use, live."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import msgspec

from craterun.cli import typed
from craterun.cli.output import complain, shorten, table
from craterun.cli.screen import Screen, can_draw
from craterun.client.usage import StatsMonitor
from craterun.core.errors import UsageError
from craterun.core.stats import Limit, Usage
from craterun.core.units import short_bytes
from craterun.state.store import Store, default_root

_HEADER = (
    "CONTAINER", "CPU %", "MEMORY", "LIMIT", "PIDS", "PEAK", "CACHE", "CPU TIME", "THROTTLED",
    "READ", "WRITTEN",
)  # fmt: skip
_NAME_WIDTH = 20
_SHORTEST_SECONDS = 0.1
_LONGEST_SECONDS = 86400.0

Show = Callable[[list[Usage]], None]


def stats(
    *containers: str,
    stream: typed.Annotated[
        bool, typed.Parameter(negative=["--no-stream"], show_default=False)
    ] = True,
    interval: float = 1.0,
    form: typed.Annotated[
        typed.Literal["table", "json"], typed.Parameter(name="--format")
    ] = "table",
) -> int:
    """Show what containers use: CPU, memory, processes, I/O. Until interrupted, or all have ended.

    On a terminal the table is refreshed in place. A figure that this host cannot give is shown as
    a dash; docs/stats.md tells what each of them means.

    Parameters
    ----------
    containers
        Ids, prefixes or names; default: all that run, also those that start later.
    stream
        With --no-stream: print one table and end. It takes two samples, --interval apart, to know
        the CPU percentage; --interval 0 takes one, and does without.
    interval
        Seconds between samples.
    form
        A table for people, or JSON for programs: one object per line, container and sample.
    """
    once = not stream
    if not (interval == 0 and once) and not _SHORTEST_SECONDS <= interval <= _LONGEST_SECONDS:
        raise UsageError(
            f"--interval {interval:g} is not between {_SHORTEST_SECONDS:g} and "
            f"{_LONGEST_SECONDS:g} seconds{'' if once else '; 0 goes with --no-stream only'}"
        )
    with StatsMonitor(Store(default_root()), containers) as monitor:
        for problem in monitor.problems:
            complain(str(problem))
        if not monitor.finished:
            if once:
                _show_once(monitor, interval, form)
            else:
                _follow(monitor, interval, form)
        return 125 if monitor.problems else 0


def _show_once(monitor: StatsMonitor, interval: float, form: str) -> None:
    samples = monitor.sample()
    if interval:
        time.sleep(interval)
        samples = monitor.sample()
    (_print_json if form == "json" else _print_table)(samples)


def _follow(monitor: StatsMonitor, interval: float, form: str) -> None:
    if form == "json":
        _repeat(monitor, interval, _print_json, again=False)
    elif can_draw(1):
        # Blocked, so that it can be waited for along with the time.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
        screen = Screen(_write, lambda: os.get_terminal_size(1))
        _repeat(monitor, interval, lambda s: screen.draw(_lines(s)), again=True)
    else:
        _repeat(monitor, interval, _print_table, again=False)


def _repeat(monitor: StatsMonitor, interval: float, show: Show, *, again: bool) -> None:
    """Sample and show; between samples, show again whenever the terminal's size changes."""
    due = time.monotonic()
    while True:
        samples = monitor.sample()
        if monitor.finished:
            return  # the last figures stay where they are
        show(samples)
        # By the clock, so that the time a sample takes does not add up; what was missed is missed.
        due = max(due + interval, time.monotonic())
        while (left := due - time.monotonic()) > 0:
            if not again:
                time.sleep(left)
            elif signal.sigtimedwait({signal.SIGWINCH}, left) is not None:
                show(samples)


def _print_json(samples: list[Usage]) -> None:
    encoder = msgspec.json.Encoder()
    _write("".join(f"{encoder.encode(usage).decode()}\n" for usage in samples))


def _print_table(samples: list[Usage]) -> None:
    _write("\n".join(_lines(samples)) + "\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _lines(samples: list[Usage]) -> list[str]:
    return table(_HEADER, map(_row, samples)).split("\n")


def _row(usage: Usage) -> tuple[str, ...]:
    return (
        shorten(usage.name or usage.id, _NAME_WIDTH),
        "-" if usage.cpu_percent is None else f"{usage.cpu_percent:.1f}",
        _bytes(usage.memory_bytes),
        _bytes(usage.memory_limit_bytes),
        "-" if usage.pids is None else f"{usage.pids}/{_number(usage.pids_limit)}",
        _bytes(usage.memory_peak_bytes),
        _bytes(usage.memory_cache_bytes),
        _seconds(usage.cpu_seconds),
        _throttled(usage),
        _bytes(usage.io_read_bytes),
        _bytes(usage.io_write_bytes),
    )


def _bytes(value: Limit) -> str:
    return short_bytes(value) if isinstance(value, int) else value or "-"


def _number(value: Limit) -> str:
    return "-" if value is None else str(value)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}s"


def _throttled(usage: Usage) -> str:
    if usage.cpu_throttled_seconds is None:
        return "-"
    return f"{_seconds(usage.cpu_throttled_seconds)} {usage.cpu_throttled_periods or 0}/" + (
        f"{usage.cpu_periods or 0}"
    )
