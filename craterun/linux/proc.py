"""Parsers of /proc: bytes in, values out, and the few reads that go with them (proc(5))."""

from __future__ import annotations

import os
from functools import cache

import msgspec

from craterun.core.life import Process


class Mount(msgspec.Struct, frozen=True):
    """One line of /proc/PID/mountinfo.

    :ivar device: ``MAJOR:MINOR`` of the filesystem
    :ivar root: what of the filesystem is mounted, as a path within it
    :ivar point: where it is mounted
    :ivar kind: filesystem type
    :ivar options: super block options
    """

    device: str
    root: str
    point: str
    kind: str
    options: tuple[str, ...]
    readonly: bool


def parse_mountinfo(text: str) -> list[Mount]:
    """All mounts, in the order in which they are stacked."""
    mounts = []
    for line in text.split("\n"):
        head, separator, tail = line.partition(" - ")
        fields, more = head.split(" "), tail.split(" ")
        if not separator or len(fields) < 6 or len(more) < 3:
            continue
        mounts.append(
            Mount(
                device=fields[2],
                root=_unescape(fields[3]),
                point=_unescape(fields[4]),
                kind=more[0],
                options=tuple(more[2].split(",")),
                readonly="ro" in fields[5].split(","),
            )
        )
    return mounts


def _unescape(field: str) -> str:
    r"""Undo the kernel's ``\040`` for blank, tab, newline and backslash."""
    if "\\" not in field:
        return field
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, char)
    return field


def parse_cgroup(text: str) -> dict[str, str]:
    """/proc/PID/cgroup as {controller: path}; ``""`` is the version 2 hierarchy."""
    paths = {}
    for line in text.split("\n"):  # not splitlines: a name may hold any other line separator
        if line:
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                paths[controller] = path
    return paths


def parse_start_time(stat: bytes) -> int:
    """Field 22 of /proc/PID/stat, clock ticks since boot. The name in field 2 may hold anything."""
    return int(stat[stat.rindex(b")") + 2 :].split(b" ", 20)[19])


def parse_state(stat: bytes) -> str:
    """Field 3 of /proc/PID/stat: ``R``, ``S``, ``D``, ``Z``, …"""
    return stat[stat.rindex(b")") + 2 :].split(b" ", 1)[0].decode()


def is_in_memory(path: str) -> bool:
    """Whether ``path``, or the nearest directory above it that exists, is on a tmpfs or ramfs."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    device = os.stat(path).st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as file:
        mounts = parse_mountinfo(file.read())
    return any(m.device == numbers and m.kind in ("tmpfs", "ramfs") for m in mounts)


@cache
def boot_id() -> str:
    """The kernel's name for this boot."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def is_alive(process: Process) -> bool:
    """Whether ``process`` still runs: the same pid, start time and boot, and not a zombie."""
    if process.boot_id != boot_id():
        return False
    try:
        with open(f"/proc/{process.pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return False
    return parse_start_time(stat) == process.start_time and parse_state(stat) not in "ZX"


def open_process(process: Process) -> int:
    """A pidfd of ``process``, which the caller owns. `ProcessLookupError` if it has ended.

    The order closes the race with a reused pid: the descriptor is opened first, and only then
    compared; from there on it cannot mean another process.
    """
    pidfd = os.pidfd_open(process.pid)
    if not is_alive(process):
        os.close(pidfd)
        raise ProcessLookupError(3, os.strerror(3), str(process.pid))
    return pidfd
