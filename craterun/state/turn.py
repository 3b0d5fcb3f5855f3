"""Whose turn it is to use a log's files, once relays append to them without asking anybody.

A relay (`linux.relay`) waits for output unlocked, and takes the log when there is some. So whoever
wants to use the files has to disarm the relays, too, after locking the log, which keeps them from
being armed again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

Target = Callable[[int], int | None]
"""Gives the descriptor that what comes at an offset is to be passed on to; -1 if there is no need
to, or None: not by a relay."""


class Relay(Protocol):
    """What appends by itself while it is armed."""

    def arm(self, log: int, room: int, reader: int, yield_below: int = 0) -> None: ...

    @property
    def logged(self) -> int: ...

    def halt(self) -> bool: ...

    def wait_idle(self) -> None: ...


class Turn:
    """A lock that disarms relays. Context manager.

    :ivar relays: those that there are. Changed only while `lock` is held.
    """

    def __init__(self, lock: threading.Lock) -> None:
        """:param lock: what those lock who leave relays alone"""
        self.lock = lock
        self.relays: list[Relay] = []

    def __enter__(self) -> None:
        while True:
            self.lock.acquire()
            busy = [relay for relay in self.relays if not relay.halt()]
            if not busy:
                return
            # It needs the lock to put down what it has written.
            self.lock.release()
            busy[0].wait_idle()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
