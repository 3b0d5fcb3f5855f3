"""What the kernel's counters say about processes killed for want of memory, and what they do not.

Three facts are kept apart, since each has been mistaken for another: how many processes of a
container the OOM killer has killed, whether its first process was one of them, and how the first
process ended. The kernel counts the first and tells the third. Nothing tells the second: the
counter names no victim, and every SIGKILL looks alike. It follows from order, though. The killer
counts a kill *before* it sends the signal, both while it holds the victim's task lock; reading
/proc/PID/stat takes the same lock. So when the counter stands at N, and a look at the first process
*after that* finds no death sentence on it, then none of these N kills was its own: they are
*cleared*. A first process that ends by SIGKILL while a kill is not cleared was the victim, unless
somebody else is known to have sent SIGKILL, too; then nobody can tell.
"""

from __future__ import annotations

import msgspec

_SIGKILL = 9
_PF_EXITING = 0x4
_NO_LIMIT = 1 << 62
"""Version 1 prints "no limit" as the largest multiple of the page size in 63 bits."""


class OomCount(msgspec.Struct, frozen=True):
    """What is known of one container.

    :ivar kills: processes killed so far; None if there is no memory cgroup to count them
    :ivar cleared: of these, how many are known not to have been of the first process
    """

    kills: int | None = 0
    cleared: int = 0


def parse_oom_kills(content: bytes) -> int:
    """``oom_kill`` of memory.events (version 2) or memory.oom_control (version 1, Linux 4.13).

    Not ``oom``, which counts how often a limit was hit with or without a kill, and for a limit that
    a parent shares, in the parent.

    :raises ValueError: there is no such line
    """
    for line in content.splitlines():
        key, _, value = line.partition(b" ")
        if key == b"oom_kill":
            return int(value)
    raise ValueError("no oom_kill counter")


def parse_limit(content: bytes) -> int | None:
    """Bytes in memory.max or memory.limit_in_bytes; None without a limit."""
    text = content.strip()
    if text == b"max" or int(text) >= _NO_LIMIT:
        return None
    return int(text)


def is_doomed(stat: bytes, start_time: int) -> bool:
    """Whether the process of /proc/PID/stat has ended, is about to, or was sent SIGKILL.

    :param start_time: field 22 of the process that is meant; another one there means that it ended

    Field 3 is the state, field 9 has PF_EXITING, and the last, 52, is the exit code that the whole
    process will have, which is set as soon as a deadly signal has been sent (Linux 5.17; before,
    the first two show it some microseconds later). Zeros for who may not look (proc(5)).
    """
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X", b"x") or int(fields[6]) & _PF_EXITING:
        return True
    if int(fields[19]) != start_time:
        return True
    return int(fields[49]) & 0x7F == _SIGKILL


def was_init_killed(
    signal: int | None, count: OomCount, *, other_sigkill: bool, status_known: bool = True
) -> bool | None:
    """Whether the OOM killer killed the first process, judged after its end; None: unknown.

    :param signal: what it was killed by, or None
    :param other_sigkill: somebody else is known to have sent it SIGKILL
    :param status_known: whether anybody saw how it ended
    """
    if status_known and signal != _SIGKILL:
        return False
    if count.kills is None:
        return None
    if count.kills <= count.cleared:
        return False
    return None if other_sigkill or not status_known else True


def binary_size(count: int) -> str:
    """``count`` bytes for people: ``16 MiB``, ``1.5 GiB``, ``4000 bytes``."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):.1f}".removesuffix(".0") + f" {unit}"
    return f"{count} bytes"


def kills_text(kills: int) -> str:
    """``1 OOM kill``, ``3 OOM kills``."""
    return f"{kills} OOM kill{'' if kills == 1 else 's'}"


def live_text(kills: int, limit: int | None) -> str:
    """For somebody who watches the container run on."""
    why = "out of memory" if limit is None else f"memory limit of {binary_size(limit)} was hit"
    return (
        f"{why}: the kernel has killed a process ({kills_text(kills)} so far); "
        "its first process lives on"
    )


def final_text(kills: int, limit: int | None, init_killed: bool | None) -> str:
    """The same when all is over."""
    why = (
        "the host or a parent cgroup ran out of memory"
        if limit is None
        else f"the memory limit of {binary_size(limit)} was hit"
    )
    whom = {
        True: "its first process was killed",
        False: "its first process was not the victim",
        None: "whether its first process was a victim is unknown, since it was sent SIGKILL, too",
    }[init_killed]
    return f"{why}: {kills_text(kills)}; {whom}"
