"""Much output: from the pipe to the log without a copy in our memory, away from the event loop.

Where splice(2) does not do it, by reading and writing.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import closing
from typing import TYPE_CHECKING

import trio

from craterun.linux.shortage import is_no_thread
from craterun.supervisor.express import CHUNK_BYTES
from craterun.supervisor.sluice import Sluice

if TYPE_CHECKING:
    from craterun.state.logs import Stream
    from craterun.state.writer import Writer
    from craterun.supervisor.pumps import OutputLog

ROUND_BYTES = 8 * 1024 * 1024
"""How much a thread moves before the event loop is asked again."""
_LINGER_MS = 2
"""How long a thread waits for more. splice(2) empties a pipe faster than it is filled, and the way
through the event loop, for a container that is about to write on, takes longer than its write."""


_threads = trio.CapacityLimiter(4)


async def pump_bulk(pipe: int, log: OutputLog, stream: Stream) -> None:
    """Move what comes from ``pipe`` (borrowed, non-blocking) to the log, for as long as it is much.

    If there is no thread for it, nothing is done.
    """
    writer = log.writer
    while not writer.is_lossy():
        before = writer.sizes[stream]
        try:
            unlogged = await trio.to_thread.run_sync(
                move_bulk, pipe, writer, stream, limiter=_threads
            )
        except RuntimeError as error:
            if not is_no_thread(error):
                raise
            return  # the event loop moves it, in smaller pieces
        log.feed(stream, unlogged)
        log.announce(stream)
        if writer.sizes[stream] - before < ROUND_BYTES:
            return


def move_bulk(pipe: int, writer: Writer, stream: Stream) -> bytes:
    """In a thread: move what is there, up to one round's worth.

    Returns what the log did not take because it failed; from then on the event loop does all.

    :param pipe: borrowed, non-blocking
    """
    with closing(Sluice()) as sluice:
        return _move(pipe, writer, stream, sluice)


def _move(pipe: int, writer: Writer, stream: Stream, sluice: Sluice) -> bytes:
    buffer: memoryview | None = None
    more = select.poll()
    more.register(pipe, select.POLLIN)
    moved = 0
    while moved < ROUND_BYTES and not writer.is_lossy():
        if size := sluice.take(pipe):
            moved += size
            if unlogged := sluice.pour(size, writer, stream):
                return unlogged
            continue
        buffer = buffer or memoryview(bytearray(CHUNK_BYTES))
        try:
            size = os.readv(pipe, [buffer])
        except BlockingIOError:
            if not more.poll(_LINGER_MS):
                break
            continue
        if size == 0:
            break
        moved += size
        before = writer.sizes[stream]
        writer.append(stream, buffer[:size], time.time_ns())
        if writer.is_lossy():
            return bytes(buffer[writer.sizes[stream] - before : size])
    return b""
