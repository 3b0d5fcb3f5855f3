"""What a container uses: cgroup files in, figures out. Pure functions of the files' contents.

Every figure is None where the host cannot give it (no such controller, an older kernel), which is
not the same as 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from craterun.core.life import Instant

Limit = int | Literal["max"] | None
"""A limit: a number, ``"max"`` for none, or None where it cannot be known."""

Source = tuple[int, str]
"""A file of a container's cgroup: version of the hierarchy (1 or 2), name."""

Contents = Mapping[Source, bytes]

SOURCES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "memory": (
        ("memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.limit_in_bytes",
         "memory.stat"),
        ("memory.current", "memory.peak", "memory.max", "memory.stat"),
    ),
    "cpuacct": (("cpuacct.usage",), ("cpu.stat",)),
    "cpu": (("cpu.stat",), ("cpu.stat",)),
    "pids": (("pids.current", "pids.max"), ("pids.current", "pids.max")),
    "blkio": (("blkio.throttle.io_service_bytes_recursive",), ("io.stat",)),
}  # fmt: skip
"""Files to read, by version 1 controller: those of version 1, and those of version 2."""

_V1_UNLIMITED = 1 << 62
"""From here on, a version 1 memory limit is none: it is LONG_MAX rounded down to a page."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """One container's figures at one time. docs/stats.md says where each comes from.

    :ivar time: when the sample was taken
    :ivar memory_bytes: everything charged to it: its own memory, page cache, tmpfs, kernel objects
    :ivar memory_peak_bytes: the most of it since the container was started
    :ivar memory_anon_bytes: the part that belongs to processes alone
    :ivar memory_cache_bytes: the part that caches files and can be dropped; tmpfs is not in it
    :ivar memory_tmpfs_bytes: the part in tmpfs and shared memory
    :ivar cpu_seconds: CPU time since the start, user and system, of all processes
    :ivar cpu_percent: since the sample before; 100 is one CPU. None in the first sample
    :ivar cpu_periods: periods of the CPU limit in which it ran
    :ivar cpu_throttled_periods: those in which it was held back
    :ivar cpu_throttled_seconds: for how long, summed over CPUs
    :ivar pids: processes and threads
    :ivar io_read_bytes: from block devices, summed
    :ivar io_write_bytes: to block devices, summed
    """

    id: str
    name: str | None
    time: Instant
    memory_bytes: int | None
    memory_peak_bytes: int | None
    memory_limit_bytes: Limit
    memory_anon_bytes: int | None
    memory_cache_bytes: int | None
    memory_tmpfs_bytes: int | None
    cpu_seconds: float | None
    cpu_percent: float | None
    cpu_periods: int | None
    cpu_throttled_periods: int | None
    cpu_throttled_seconds: float | None
    pids: int | None
    pids_limit: Limit
    io_read_bytes: int | None
    io_write_bytes: int | None


def cpu_nanoseconds(contents: Contents) -> int | None:
    """CPU time used so far."""
    v1 = _number(contents.get((1, "cpuacct.usage")))
    if v1 is not None:
        return v1
    return _times(parse_flat(contents.get((2, "cpu.stat"))).get("usage_usec"), 1000)


def cpu_percent(before: tuple[int, int] | None, now: tuple[int, int] | None) -> float | None:
    """Per cent of one CPU between two readings of (clock, CPU time used), in nanoseconds."""
    if before is None or now is None or now[0] <= before[0]:
        return None
    return round(100 * max(0, now[1] - before[1]) / (now[0] - before[0]), 2)


def figures(contents: Contents) -> dict[str, object]:
    """All fields of `Usage` that one reading of the files gives."""
    stat = parse_flat(contents.get((2, "memory.stat")) or contents.get((1, "memory.stat")))
    # Version 1 counts a nested cgroup in the total_ keys only, version 2 in all.
    anon = _first(stat, "anon", "total_rss")
    cached = _first(stat, "file", "total_cache")
    tmpfs = _first(stat, "total_shmem", "shmem")
    throttling = parse_flat(contents.get((1, "cpu.stat")) or contents.get((2, "cpu.stat")))
    nanoseconds = _times(throttling.get("throttled_usec"), 1000)
    if nanoseconds is None:
        nanoseconds = throttling.get("throttled_time")
    read, written = transferred(contents)
    return {
        "memory_bytes": _either(contents, "memory.usage_in_bytes", "memory.current"),
        "memory_peak_bytes": _either(contents, "memory.max_usage_in_bytes", "memory.peak"),
        "memory_limit_bytes": _limit(contents, "memory.limit_in_bytes", "memory.max"),
        "memory_anon_bytes": anon,
        "memory_cache_bytes": None if cached is None or tmpfs is None else max(0, cached - tmpfs),
        "memory_tmpfs_bytes": tmpfs,
        "cpu_seconds": _seconds(cpu_nanoseconds(contents)),
        "cpu_periods": throttling.get("nr_periods"),
        "cpu_throttled_periods": throttling.get("nr_throttled"),
        "cpu_throttled_seconds": _seconds(nanoseconds),
        "pids": _either(contents, "pids.current", "pids.current"),
        "pids_limit": _limit(contents, "pids.max", "pids.max"),
        "io_read_bytes": read,
        "io_write_bytes": written,
    }


def transferred(contents: Contents) -> tuple[int | None, int | None]:
    """Bytes read from and written to all block devices."""
    read = written = 0
    v2 = contents.get((2, "io.stat"))
    v1 = contents.get((1, "blkio.throttle.io_service_bytes_recursive"))
    if v2 is not None:
        for line in v2.split(b"\n"):  # 8:0 rbytes=1 wbytes=2 rios=3 …
            for field in line.split()[1:]:
                key, _, value = field.partition(b"=")
                if key == b"rbytes":
                    read += _number(value) or 0
                elif key == b"wbytes":
                    written += _number(value) or 0
        return read, written
    if v1 is not None:
        for line in v1.split(b"\n"):  # 8:0 Read 1
            fields = line.split()
            if len(fields) == 3 and fields[1] == b"Read":
                read += _number(fields[2]) or 0
            elif len(fields) == 3 and fields[1] == b"Write":
                written += _number(fields[2]) or 0
        return read, written
    return None, None


def parse_flat(content: bytes | None) -> dict[str, int]:
    """A "flat keyed" file: a key and a number on each line. What is not like that is left out."""
    found = {}
    for line in (content or b"").split(b"\n"):
        key, _, value = line.partition(b" ")
        number = _number(value)
        if number is not None:
            found[key.decode("ascii", "replace")] = number
    return found


def _number(content: bytes | None) -> int | None:
    text = (content or b"").strip()
    return int(text) if text.isdigit() else None


def _either(contents: Contents, v1: str, v2: str) -> int | None:
    first = _number(contents.get((1, v1)))
    return first if first is not None else _number(contents.get((2, v2)))


def _limit(contents: Contents, v1: str, v2: str) -> Limit:
    for source in ((1, v1), (2, v2)):
        content = contents.get(source)
        if content is None:
            continue
        if content.strip() == b"max":
            return "max"
        number = _number(content)
        if number is not None:
            return "max" if number >= _V1_UNLIMITED else number
    return None


def _first(stat: dict[str, int], *keys: str) -> int | None:
    return next((stat[key] for key in keys if key in stat), None)


def _times(number: int | None, factor: int) -> int | None:
    return None if number is None else number * factor


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9
