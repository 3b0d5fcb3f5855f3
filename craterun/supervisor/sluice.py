"""A pipe of our own between a container's and the log, for much output.

splice(2) into a file holds the lock of the pipe that it takes from until all is written, so that
the container cannot write meanwhile. From pipe to pipe it only moves references, which takes no
time; what is written to the file is then in a pipe that nobody else waits for (measured with both
processors free: 1.4 times the rate of one splice, 1.7 times that of read and write).
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from craterun.state.logs import Stream
    from craterun.state.writer import Writer

SLUICE_BYTES = 256 * 1024
"""So much is in our hands, and lost if we are killed, at most: no more than what a read takes."""


class Sluice:
    """Made when it is first needed. Close it. For one thread at a time."""

    def __init__(self) -> None:
        self._out = self._in = -1

    def _open(self) -> None:
        if self._in >= 0:
            return
        self._out, self._in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # Above the user's quota, it holds less.
        with suppress(OSError):
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, SLUICE_BYTES)

    def take(self, pipe: int) -> int:
        """Take what is in ``pipe``, as far as there is room; how many bytes. 0: read it instead,
        which tells whether that is the end, or nothing there yet, or no pipe (a terminal); or
        there is no descriptor for a pipe of ours.

        Everything taken before has to be poured out.
        """
        try:
            self._open()
            return os.splice(pipe, self._in, SLUICE_BYTES, flags=os.SPLICE_F_NONBLOCK)
        except (OSError, AttributeError):  # AttributeError: a C library that has no splice
            return 0

    def pour(self, size: int, writer: Writer, stream: Stream) -> bytes:
        """Append ``size`` bytes, all that was taken. Returns those that the log did not take,
        because it failed.
        """
        unlogged = b""
        while size:
            moved = writer.splice(stream, self._out, size, time.time_ns())
            if not moved:
                data = os.read(self._out, size)
                moved = len(data)
                before = writer.sizes[stream]
                writer.append(stream, memoryview(data), time.time_ns())
                if writer.is_lossy():
                    unlogged += data[writer.sizes[stream] - before :]
            size -= moved
        return unlogged

    def close(self) -> None:
        """Forget the pipe, if there is one."""
        if self._in >= 0:
            os.close(self._in)
            os.close(self._out)
