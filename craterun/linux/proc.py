"""Parsers of /proc: bytes in, values out, and the few reads that go with them (proc(5))."""

from __future__ import annotations

import errno
import os
import select
from functools import cache
from typing import NamedTuple

from craterun.core.states import Process

_PF_EXITING = 0x4


class Mount(NamedTuple):
    """One line of /proc/PID/mountinfo.

    :ivar device: ``MAJOR:MINOR`` of the filesystem
    :ivar root: what of the filesystem is mounted, as a path within it
    :ivar point: where it is mounted
    :ivar kind: filesystem type
    :ivar options: super block options
    :ivar unbindable: it cannot be bound elsewhere (mount_namespaces(7))
    """

    device: str
    root: str
    point: str
    kind: str
    options: tuple[str, ...]
    readonly: bool
    unbindable: bool = False


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
                unbindable="unbindable" in fields[6:],
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


def parse_parent(stat: bytes) -> int:
    """Field 4 of /proc/PID/stat, the parent's pid."""
    return int(stat[stat.rindex(b")") + 2 :].split(b" ", 2)[1])


def parse_state(stat: bytes) -> str:
    """Field 3 of /proc/PID/stat: ``R``, ``S``, ``D``, ``Z``, …"""
    return stat[stat.rindex(b")") + 2 :].split(b" ", 1)[0].decode()


def is_exiting(pid: int) -> bool:
    """Whether process ``pid`` has ended or is about to: PF_EXITING in field 9 of /proc/PID/stat.

    PID 1 of a namespace stays in that state until all other members have been reaped, and its
    pidfd does not tell of it.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return bool(int(stat[stat.rindex(b")") + 2 :].split(b" ", 7)[6]) & _PF_EXITING)


@cache
def boot_id() -> str:
    """The kernel's name for this boot."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def is_alive(process: Process) -> bool:
    """Whether ``process`` still runs: the same pid, start time and boot, and not a zombie."""
    try:
        os.close(open_process(process))
    except ProcessLookupError:
        return False
    return True


def open_process(process: Process) -> int:
    """A pidfd of ``process``, which the caller owns. `ProcessLookupError` if it has ended.

    The order closes the race with a reused pid: the descriptor is opened first, and only then
    compared; from there on it cannot mean another process. A process has ended when its pidfd says
    so, and not before: one whose first thread has ended looks like a zombie, too.
    """
    gone = ProcessLookupError(3, os.strerror(3), str(process.pid))
    if process.boot_id != boot_id():
        raise gone
    try:
        pidfd = os.pidfd_open(process.pid)
    except OverflowError:
        raise gone from None
    except OSError as error:
        # EINVAL and ENOENT: a number that no process can have, or one that is a thread's now. Any
        # other error, such as no free descriptor, says nothing about the process.
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
            raise gone from None
        raise
    try:
        with open(f"/proc/{process.pid}/stat", "rb") as file:
            started = parse_start_time(file.read())
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if started != process.start_time or poll.poll(0):
            raise gone
    except (FileNotFoundError, ProcessLookupError, ValueError):
        os.close(pidfd)
        raise gone from None
    except BaseException:
        os.close(pidfd)
        raise
    return pidfd
