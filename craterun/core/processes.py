"""One process of a container: what /proc tells of it, as a container's owner wants to see it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from craterun.core.life import Instant


class ProcessInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A process in a container's pid namespace, or in one nested in that.

    :ivar pid: in the container's pid namespace
    :ivar host_pid: in ours
    :ivar uid: effective user id, as the container sees it; as we do if it has no name for it there
    :ivar user: its name in the container's /etc/passwd, or the number
    :ivar state: ``R`` running, ``S`` sleeping, ``D`` waiting in the kernel, ``T`` stopped, ``Z``
        ended and not yet reaped, … (proc_pid_stat(5))
    :ivar cpu_seconds: user and system time of all its threads
    :ivar rss_bytes: memory that is mapped and present, pages shared with others included
    :ivar name: what it calls itself, at most 15 bytes
    :ivar command: its arguments; empty for a process that has ended
    """

    pid: int
    host_pid: int
    uid: int
    user: str
    state: str
    cpu_seconds: float
    rss_bytes: int
    started: Instant
    name: str
    command: tuple[str, ...]


class Stat(msgspec.Struct, frozen=True):
    """Of /proc/PID/stat: times are in clock ticks, the start counts from boot."""

    name: str
    state: str
    cpu_ticks: int
    start_ticks: int


def parse_stat(content: bytes) -> Stat:
    """The name may hold anything, blanks, parentheses and newlines included: it ends at the last
    parenthesis.

    :raises ValueError: that is no such file
    """
    begin, end = content.index(b"("), content.rindex(b")")
    fields = content[end + 2 :].split()
    if len(fields) < 20:
        raise ValueError("too few fields in /proc/PID/stat")
    return Stat(
        name=content[begin + 1 : end].decode("utf-8", "backslashreplace"),
        state=fields[0].decode(),
        cpu_ticks=int(fields[11]) + int(fields[12]),
        start_ticks=int(fields[19]),
    )


def parse_status(content: bytes) -> dict[str, list[str]]:
    """/proc/PID/status: the words after each key. The kernel escapes newlines in the name."""
    lines = content.decode("utf-8", "backslashreplace").split("\n")
    return {key: rest.split() for key, _, rest in (line.partition(":") for line in lines)}


def parse_arguments(content: bytes) -> tuple[str, ...]:
    """/proc/PID/cmdline, which a process may have overwritten with anything."""
    if not content:
        return ()
    arguments = content.removesuffix(b"\0").split(b"\0")
    return tuple(argument.decode("utf-8", "backslashreplace") for argument in arguments)


def inside_id(uid_map: str, outside: int) -> int | None:
    """What ``outside`` is called in the user namespace of a /proc/PID/uid_map; None: not mapped."""
    for line in uid_map.split("\n"):
        fields = line.split()
        if len(fields) == 3:
            inside, start, length = map(int, fields)
            if start <= outside < start + length:
                return inside + outside - start
    return None


def describe(
    host_pid: int,
    stat: Stat,
    status: Mapping[str, list[str]],
    arguments: tuple[str, ...],
    *,
    level: int,
    uid_map: str,
    users: Mapping[int, str],
    started: Instant,
    ticks_per_second: int,
) -> ProcessInfo:
    """Put together what was read.

    :param level: how many pid namespaces below ours the container's is
    :param users: names of the container's users
    :raises KeyError: ``status`` is incomplete
    :raises IndexError: the process has no pid at that level
    """
    outside = int(status["Uid"][1])
    uid = inside_id(uid_map, outside)
    number = outside if uid is None else uid
    return ProcessInfo(
        pid=int(status["NSpid"][level]),
        host_pid=host_pid,
        uid=number,
        user=users.get(number, str(number)) if uid is not None else str(number),
        state=stat.state,
        cpu_seconds=stat.cpu_ticks / ticks_per_second,
        rss_bytes=int(status.get("VmRSS", ["0"])[0]) * 1024,
        started=started,
        name=stat.name,
        command=arguments,
    )
