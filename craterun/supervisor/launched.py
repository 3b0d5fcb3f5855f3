"""One launched process, as the keeper tells of it."""

from __future__ import annotations

import time

import msgspec
import trio

from craterun.core.life import ExitStatus
from craterun.core.phases import Ended, Started
from craterun.linux.fd import Fd

DIED = b"d"
"""Evidence of a failure that there is nobody left to give evidence of."""


class Failure(msgspec.Struct, frozen=True):
    """A launch that did not get as far as execve, or could not be taken over.

    :ivar call: which call of the plan; -1: none of it
    :ivar evidence: the child's, or the keeper's (`core.failures.explain`)
    :ivar here: it was this process that had no room
    """

    call: int
    errno: int
    evidence: bytes
    here: bool = False


class Launched:
    """One process as the keeper tells of it. Events fire in this order, and all fire at last.

    :ivar settled: it executed its command, or failed to (then ``failure`` is set)
    :ivar terminal: ``stdout`` is the terminal's master side, for reading and writing; there is no
        ``stderr`` and no ``stdin``
    :ivar merged: there is no ``stderr``: what goes there comes by ``stdout``
    :ivar started: the keeper's times of its start
    :ivar ended: the keeper's times of its end
    :ivar told: when we were told of its end; nanoseconds of CLOCK_MONOTONIC, or 0
    :ivar exited: it was reaped (then ``status`` is set), or the keeper is gone (``status`` is None)
    """

    __slots__ = (
        "cookie", "ended", "exited", "failure", "lock", "merged", "number", "pid", "pidfd",
        "settled", "start_time", "started", "status", "stderr", "stdin", "stdout", "terminal",
        "told",
    )  # fmt: skip

    def __init__(self, number: int, *, terminal: bool = False, merged: bool = False) -> None:
        self.number = number
        self.terminal = terminal
        self.merged = merged
        self.pid = 0
        self.start_time = 0
        self.pidfd = Fd(-1)
        self.stdout = Fd(-1)
        self.stderr = Fd(-1)
        self.stdin = Fd(-1)
        self.lock = Fd(-1)
        self.cookie = b""
        self.settled = trio.Event()
        self.exited = trio.Event()
        self.failure: Failure | None = None
        self.status: ExitStatus | None = None
        self.started = Started()
        self.ended = Ended()
        self.told = 0

    def reaped(self, code: int, status: int, executed: int, exited: int) -> None:
        """The keeper says how and when it ended."""
        self.status = ExitStatus.from_siginfo(code, status)
        self.ended = Ended(executed, exited)
        self.told = time.monotonic_ns()
        self.exited.set()

    def close(self) -> None:
        """Close every descriptor that came from the keeper."""
        for fd in (self.pidfd, self.stdout, self.stderr, self.stdin, self.lock):
            fd.close()
