"""What the keeper keeps of a process, and the descriptors that it shares with it."""

from __future__ import annotations

import _socket
import os
import sys
from fcntl import F_DUPFD_CLOEXEC, fcntl

TYPE_CHECKING = False  # typing is an import that the keeper does without
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

EMFILE = 24


class Kept:
    """One process of ours, from its launch to its release.

    :ivar number: the supervisor's name for it
    :ivar cookie: where a successor finds its state; b"" if no successor cares for it
    :ivar group: a cgroup of its own, to be emptied if no supervisor is there to do it; or b""
    :ivar lives_on: without a cookie: it does not end with the supervisor all the same
    :ivar pipes: what the supervisor gets as well: stdout, stderr, perhaps stdin
    :ivar outputs: how many of the pipes are for output
    :ivar lock: descriptor of the locked state directory, or -1; held, not used
    :ivar terminal: socket by which the child passes its terminal out, or None
    :ivar error: read end of the error pipe, -1 once it has been read to its end
    :ivar lent: what is to be closed once the child has a table of descriptors of its own
    :ivar times: CLOCK_MONOTONIC, nanoseconds: before and after clone3, at the child's execve, and
        when that was known to have succeeded
    :ivar slot: of the keeper's `Native`, until the child has executed its command; or -1
    :ivar abandoned: nobody is interested any more: it was killed, and only has to be reaped
    :ivar status: (si_code, si_status, when its command was executed, when we were told of its end)
        once it was reaped
    """

    __slots__ = (
        "abandoned", "buffer", "cookie", "error", "failure", "group", "lent", "lives_on", "lock",
        "number", "outputs", "pid", "pidfd", "pipes", "slot",
        "start_time", "started", "status", "terminal", "times",
    )  # fmt: skip

    def __init__(self, number: int, cookie: bytes, lock: int) -> None:
        self.number = number
        self.cookie = cookie
        self.lock = lock
        self.group = b""
        self.lives_on = False
        self.pid = 0
        self.pidfd = -1
        self.start_time = 0
        self.pipes: list[int] = []
        self.outputs = 2
        self.error = -1
        self.lent: list[int] = []
        self.slot = -1
        self.terminal: Any = None
        self.buffer = b""
        self.failure: tuple[int, int, bytes] | None = None
        self.started = False
        self.abandoned = False
        self.times = (0, 0, 0, 0)
        self.status: tuple[int, int, int, int] | None = None

    def take_back(self) -> None:
        """The child has a table of descriptors of its own, or is none any more."""
        for fd in self.lent:
            os.close(fd)
        self.lent = []


def make_pipes(
    kept: Kept, child_ends: list[int], wants_stdin: bool, owner: int, merged: bool
) -> tuple[int, int, int]:
    """Our ends into ``kept``, the child's into ``child_ends``; those for 0, 1 and 2."""
    ends = [-1]
    for _ in (1,) if merged else (1, 2):
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        kept.pipes.append(read_end)
        child_ends.append(write_end)
        ends.append(write_end)
        # Whoever the process is or becomes, /dev/stdout can be reopened for writing.
        os.fchmod(write_end, 0o622)
        if owner:
            own(write_end, owner)
    if wants_stdin:
        ends[0], write_end = os.pipe2(os.O_CLOEXEC)
        kept.pipes.append(write_end)
        child_ends.append(ends[0])
        if owner:
            own(ends[0], owner)
    return ends[0], ends[1], ends[-1]


def own(pipe: int, owner: int) -> None:
    """fchown(2). EINVAL: there is no such user in our user namespace."""
    try:
        os.fchown(pipe, owner, -1)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "fchown") from None


def moved(fd: int, lowest: int) -> int:
    """``fd``, or where it is now, if there was room: at ``lowest`` or above."""
    if fd < 0 or fd >= lowest:
        return fd
    try:
        found = fcntl(fd, F_DUPFD_CLOEXEC, lowest)
    except OSError:
        return fd
    os.close(fd)
    return found


def make_room(processes: Iterable[Kept], lowest: int) -> None:
    """Move what is only held for a successor out of the numbers below ``lowest``."""
    for kept in processes:
        if kept.started:
            kept.pipes = [moved(fd, lowest) for fd in kept.pipes]
            kept.lock = moved(kept.lock, lowest)


def receive_descriptor(sock: Any) -> list[int]:
    """What came by SCM_RIGHTS, if anything.

    Raises `OSError` with EMFILE if there is no room for it.
    """
    try:
        flags = _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
        _, ancillary, flags, _ = sock.recvmsg(1, _socket.CMSG_SPACE(4), flags)
    except BlockingIOError:
        return []
    if flags & _socket.MSG_CTRUNC:
        raise OSError(EMFILE, "too many open files", "recvmsg")
    return [int.from_bytes(data[:4], sys.byteorder) for _, _, data in ancillary]


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat: clock ticks from boot to the start of the process (proc(5))."""
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        stat = os.read(fd, 1024)
    finally:
        os.close(fd)
    return int(stat[stat.rindex(b")") + 2 :].split(b" ", 20)[19])


def socket_pair() -> tuple[Any, Any]:
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
