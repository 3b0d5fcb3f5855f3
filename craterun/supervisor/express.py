"""The short way from a container to an attached reader: one thread, no event loop in between.

An event loop in Python needs about 50 µs to notice a byte and to let a task read it. A thread that
waits for the pipe itself has passed it on by then: to the log, then to the reader. Nothing else
changes: whatever the reader's side does not take at once is the reader's own business, who
finds it in the log.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import trio

from craterun.linux.shortage import SHORTAGES, is_no_thread
from craterun.supervisor.sluice import Sluice

if TYPE_CHECKING:
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
    with closing(Sluice()) as sluice:
        return _move_all(pipe, stop, log, stream, announce, sluice)


def _move_all(
    pipe: int,
    stop: int,
    log: OutputLog,
    stream: Stream,
    announce: Callable[[], None],
    sluice: Sluice,
) -> Left:
    if log.is_terminal:
        from craterun.linux.scheduling import prefer_short_slices  # needs ctypes

        # It gives way, and is to have its turn again soon.
        prefer_short_slices()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    buffers = [buffer]
    writer = log.writer
    append, readv = writer.append, os.readv
    only_output = [(pipe, select.POLLIN)]
    bulk = grown = False
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    poll.register(stop, select.POLLIN)
    wait = poll.poll
    while True:
        # Whatever can be done before the wait is: a byte that has come waits for each instruction.
        way_on = log.way_on(stream)
        before = writer.sizes[stream]
        if (ready := wait()) != only_output and any(fd == stop for fd, _ in ready):
            return Left(False, b"")
        if bulk:
            # Whoever is behind takes it from the log; whoever is not is passed what we have read.
            size = 0 if log.is_anybody_waiting(stream) else sluice.take(pipe)
            bulk = size > 0
            if bulk:
                unlogged = sluice.pour(size, writer, stream)
                if writer.is_lossy():
                    return Left(False, unlogged)
                announce()
                continue
        try:
            size = readv(pipe, buffers)
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            size = 0  # what end-of-file is for a terminal
        if size == 0:
            return Left(True, b"")
        data = buffer[:size]
        append(stream, data, None, way_on)
        if writer.is_lossy():
            return Left(False, bytes(data[writer.sizes[stream] - before :]))
        if log.is_anybody_behind(stream):
            announce()
        bulk = size >= BULK_BYTES
        if bulk and not grown:
            grown = True
            grow(pipe)


def grow(pipe: int) -> None:
    """A larger pipe lets the writer go on while we write; refused above the user's quota."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        return
