"""The short way from a container to an attached reader: one thread, no event loop in between.

An event loop in Python needs about 50 µs to notice a byte and to let a task read it. A thread that
waits for the pipe itself has passed it on by then: to the log, then to the reader; where there is a
`linux.relay`, without Python in between. Nothing else changes: whatever the reader's side does not
take at once is the reader's own business, who finds it in the log.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import trio

from craterun.linux.scheduling import prefer_short_slices
from craterun.linux.shortage import SHORTAGES, is_no_thread
from craterun.supervisor.sluice import Sluice

if TYPE_CHECKING:
    from craterun.linux.relay import Relay
    from craterun.state.logs import Stream
    from craterun.supervisor.pumps import OutputLog

CHUNK_BYTES = 256 * 1024
"""One read at most; what a chunk costs is spread over that many bytes."""
BULK_BYTES = 64 * 1024
"""A read that fills a default pipe: the writer is waiting, so go for throughput."""
_PIPE_BYTES = 1024 * 1024


class Left(NamedTuple):
    """How `pump_express` ended.

    :ivar at_end: with the end of the output; else because the log has failed
    :ivar unlogged: what was read and could not be logged
    """

    at_end: bool
    unlogged: bytes


async def pump_express(pipe: int, log: OutputLog, stream: Stream) -> Left | None:
    """Move everything from ``pipe`` (borrowed, non-blocking) to readers and log, in a thread.

    Until end-of-file, until the log fails, or until cancelled. None: there is no thread or no
    descriptor for it, and nothing was done.
    """
    token = trio.lowlevel.current_trio_token()
    try:
        stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        if error.errno not in SHORTAGES:
            raise
        return None
    left: Left | None = None

    def announce() -> None:
        token.run_sync_soon(log.announce, stream, idempotent=True)

    async def stop_thread_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            os.eventfd_write(stop, 1)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_thread_when_cancelled)
            # A limiter of its own: it may be there for as long as the container is.
            try:
                left = await trio.to_thread.run_sync(
                    _move, pipe, stop, log, stream, announce, limiter=trio.CapacityLimiter(1)
                )
            except RuntimeError as error:
                if not is_no_thread(error):
                    raise
            nursery.cancel_scope.cancel()
    finally:
        os.close(stop)
    return left


def _move(
    pipe: int, stop: int, log: OutputLog, stream: Stream, announce: Callable[[], None]
) -> Left:
    if log.is_terminal:
        # It gives way, and is to have its turn again soon.
        prefer_short_slices()
    return _Way(pipe, stop, log, stream, announce).go()


class _Way:
    """What the thread does. Whatever can be done before a wait is: a byte that has come waits for
    each instruction.
    """

    def __init__(
        self, pipe: int, stop: int, log: OutputLog, stream: Stream, announce: Callable[[], None]
    ) -> None:
        from craterun.linux.relay import open_relay  # needs ctypes

        self._pipe = pipe
        self._stop = stop
        self._log = log
        self._writer = log.writer
        self._stream = stream
        self._announce = announce
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        self._relay = open_relay(pipe, stop, self._buffer)
        self._sluice = Sluice()
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)
        self._poll.register(stop, select.POLLIN)
        self._only_output = [(pipe, select.POLLIN)]
        self._is_bulk = self._is_grown = False
        self._left: Left | None = None

    def go(self) -> Left:
        """Until there is nothing more to be done this way."""
        try:
            while self._left is None:
                if self._is_bulk:
                    self._pour()
                elif self._relay is not None and self._log.arm(self._relay, self._stream):
                    self._move_by_relay(self._relay)
                else:
                    self._move()
            return self._left
        finally:
            self._sluice.close()
            if self._relay is not None:
                self._writer.dismiss(self._relay)

    def _wait(self) -> bool:
        """Until there is output, or its end. False: no longer."""
        ready = self._poll.poll()
        if ready != self._only_output and any(fd == self._stop for fd, _ in ready):
            self._left = Left(False, b"")
            return False
        return True

    def _move(self) -> None:
        way_on = self._log.way_on(self._stream)
        before = self._writer.sizes[self._stream]
        if not self._wait():
            return
        try:
            size = os.readv(self._pipe, [self._buffer])
        except BlockingIOError:
            return
        except OSError as error:
            size = -(error.errno or errno.EIO)
        if size > 0:
            self._writer.append(self._stream, self._buffer[:size], None, way_on)
        self._moved(size, before)

    def _move_by_relay(self, relay: Relay) -> None:
        before = self._writer.sizes[self._stream]
        try:
            size = relay.wait()
            if is_logged := relay.took:
                self._log.relayed(relay, self._stream, self._buffer[:size])
        finally:
            relay.finish()
        if size > 0 and not is_logged:
            way_on = self._log.way_on(self._stream)
            self._writer.append(self._stream, self._buffer[:size], None, way_on)
        self._moved(size, before)

    def _moved(self, size: int, before: int) -> None:
        """So much was read, logged as far as that is possible, and passed on; 0 or -errno: none."""
        if size == -errno.ECANCELED:
            self._left = Left(False, b"")
        elif size in (0, -errno.EIO):  # the latter is what end-of-file is for a terminal
            self._left = Left(True, b"")
        elif size < 0:
            raise OSError(-size, os.strerror(-size))
        elif self._writer.is_lossy():
            logged = self._writer.sizes[self._stream] - before
            self._left = Left(False, bytes(self._buffer[logged:size]))
        else:
            if self._log.is_anybody_behind(self._stream):
                self._announce()
            self._is_bulk = size >= BULK_BYTES
            if self._is_bulk and not self._is_grown:
                self._is_grown = True
                grow(self._pipe)

    def _pour(self) -> None:
        """Whoever is behind takes it from the log; whoever is not is passed what we have read."""
        if not self._wait():
            return
        size = 0
        if not self._log.is_anybody_waiting(self._stream):
            size = self._sluice.take(self._pipe)
        self._is_bulk = size > 0
        if size:
            unlogged = self._sluice.pour(size, self._writer, self._stream)
            if self._writer.is_lossy():
                self._left = Left(False, unlogged)
            else:
                self._announce()


def grow(pipe: int) -> None:
    """A larger pipe lets the writer go on while we write; refused above the user's quota."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        return
