"""What a container's output goes to: a log, or nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Protocol

from craterun.core.logoptions import LogOptions
from craterun.state.loghead import Head
from craterun.state.logindex import FILES, Stream
from craterun.state.logs import LogWriter, Then
from craterun.state.turn import Relay, Target


class Writer(Protocol):
    """What a container's output is appended to.

    :ivar sizes: bytes of each stream that can be read again
    :ivar error: the failure that ended the logging, or None
    :ivar lost_bytes: what came after that
    :ivar head: sees all that is appended, if somebody wants that
    """

    sizes: dict[Stream, int]
    error: OSError | None
    lost_bytes: int
    head: Head | None

    def is_lossy(self) -> bool: ...

    def append(
        self, stream: Stream, data: memoryview, time_ns: int | None, then: Then | None = None
    ) -> None: ...

    def splice(self, stream: Stream, pipe: int, most: int, time_ns: int) -> int | None: ...

    # Relays are for what is logged: where nothing is, none is ever armed.

    def arm(self, relay: Relay, stream: Stream, target: Target, yield_below: int) -> bool:
        return False

    def relayed(self, relay: Relay, stream: Stream, data: memoryview, then: Then | None) -> None:
        return

    def halt(self) -> None:
        return

    def dismiss(self, relay: Relay) -> None:
        return

    def locate(self, stream: Stream, offset: int, directory: int = -1) -> tuple[int, int]: ...

    def finish(self) -> None: ...

    def complaint(self) -> str | None: ...


def open_writer(
    directory: int,
    options: LogOptions,
    *,
    resume: bool,
    may_keep: Callable[[int], bool] | None = None,
) -> Writer:
    """The writer for a container's folder, whose descriptor stays the caller's."""
    if options.driver == "none":
        return NoLog()
    return LogWriter(directory, options, resume=resume, may_keep=may_keep)


class NoLog(Writer):
    """Keeps nothing: only who is attached sees the output."""

    def __init__(self) -> None:
        self.sizes = dict.fromkeys(Stream, 0)
        self.error: OSError | None = None
        self.lost_bytes = 0
        self.head: Head | None = None

    def is_lossy(self) -> bool:
        """Always: what is appended cannot be read again, so that readers have to be fed."""
        return True

    def append(
        self, stream: Stream, data: memoryview, time_ns: int | None, then: Then | None = None
    ) -> None:
        """Nothing is kept but the head, if that is wanted."""
        if self.head is not None:
            self.head.add(stream, data)

    def splice(self, stream: Stream, pipe: int, most: int, time_ns: int) -> int | None:
        """Nowhere to."""
        return None

    def locate(self, stream: Stream, offset: int, directory: int = -1) -> tuple[int, int]:
        """Nowhere."""
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), FILES[stream])

    def finish(self) -> None:
        """Nothing."""

    def complaint(self) -> str | None:
        """Nothing was to be kept."""
        return None
