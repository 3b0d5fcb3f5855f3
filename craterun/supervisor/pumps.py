"""From a container's output pipes to its log, and from there to whoever is attached.

The log is the only buffer. A pump moves bytes from the pipe to the log as fast as they come; a
reader follows the log at its own pace, however slow, with a cursor of its own. So no reader ever
holds up the container or another reader, none loses a byte, and memory does not grow with what is
unread. Only when the log itself has failed (disk full) are readers fed directly, each through a
bounded queue, with what does not fit counted as skipped.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections import deque

import trio

from craterun.linux.fd import Fd
from craterun.state.logs import LogWriter, Stream

CHUNK_BYTES = 256 * 1024
"""One read at most; what a chunk costs is spread over that many bytes."""

DRAIN_SECONDS = 2.0
"""How long a silent output pipe is still waited for after its last known writer has ended.

All of the container's output is in the pipes by then and is read in full, however long that takes.
Only somebody outside, who was handed the descriptor over a socket, can keep a pipe open; for exec,
whatever the command left running in the background.
"""

_BULK_BYTES = 64 * 1024
"""A read that fills a default pipe: the writer is waiting, so go for throughput."""
_BULK_PIPE_BYTES = 1024 * 1024
_BULK_ROUND_BYTES = 8 * 1024 * 1024
_LIVE_QUEUE_BYTES = 1024 * 1024

_buffer = memoryview(bytearray(CHUNK_BYTES))
# One for all pumps: between filling and emptying it there is no await, and one thread.
_bulk_threads = trio.CapacityLimiter(4)


class OutputLog:
    """One container's log while it is written: the writer, and how readers learn of news."""

    def __init__(self, writer: LogWriter) -> None:
        self.writer = writer
        self.ended = dict.fromkeys(Stream, False)
        self._news = {stream: trio.lowlevel.ParkingLot() for stream in Stream}
        self._readers: list[LogReader] = []

    def follow(self, stream: Stream) -> LogReader:
        """A reader of everything that ``stream`` holds and will hold. Close it after use."""
        reader = LogReader(self, stream)
        self._readers.append(reader)
        return reader

    def forget(self, reader: LogReader) -> None:
        """Drop a closed reader."""
        self._readers.remove(reader)

    def announce(self, stream: Stream) -> None:
        """Wake readers of ``stream``."""
        self._news[stream].unpark_all()

    async def wait_news(self, stream: Stream) -> None:
        """Until `announce`."""
        await self._news[stream].park()

    def append(self, stream: Stream, data: memoryview) -> None:
        """Log one chunk and wake the readers; or feed them, if there is no log any more."""
        before = self.writer.sizes[stream]
        self.writer.append(stream, data, time.time_ns())
        if self.writer.error is not None:
            self.feed(stream, bytes(data[self.writer.sizes[stream] - before :]))
        self.announce(stream)

    def feed(self, stream: Stream, data: bytes) -> None:
        """Give readers what the log could not take."""
        for reader in self._readers:
            if reader.stream == stream:
                reader.offer(data)

    async def wait_end(self, stream: Stream) -> None:
        """Until `end`."""
        while not self.ended[stream]:
            await self.wait_news(stream)

    def end(self, stream: Stream) -> None:
        """Nothing more will come on ``stream``."""
        self.ended[stream] = True
        self.announce(stream)


class LogReader:
    """A cursor on one stream of a log that is still being written.

    :ivar skipped_bytes: what did not fit into the queue after the log had failed
    """

    def __init__(self, log: OutputLog, stream: Stream) -> None:
        self.stream = stream
        self.skipped_bytes = 0
        self._log = log
        self._file = Fd(-1)
        self._offset = 0
        self._live: deque[bytes] = deque()
        self._live_bytes = 0

    def offer(self, data: bytes) -> None:
        """Take ``data`` into the queue if there is room."""
        if self._live_bytes + len(data) > _LIVE_QUEUE_BYTES:
            self.skipped_bytes += len(data)
        elif data:
            self._live.append(data)
            self._live_bytes += len(data)

    async def receive(self) -> bytes:
        """The next bytes, at most CHUNK_BYTES; b"" at the end."""
        while True:
            if self._offset < self._log.writer.sizes[self.stream]:
                if self._file.closed:
                    self._file = Fd(self._log.writer.reader(self.stream))
                data = os.pread(self._file.fileno(), CHUNK_BYTES, self._offset)
                if not data:  # somebody truncated the file: what was in it cannot be had any more
                    self.skipped_bytes += self._log.writer.sizes[self.stream] - self._offset
                    self._offset = self._log.writer.sizes[self.stream]
                    continue
                self._offset += len(data)
                return data
            if self._live:
                data = self._live.popleft()
                self._live_bytes -= len(data)
                return data
            if self._log.ended[self.stream]:
                return b""
            await self._log.wait_news(self.stream)

    def close(self) -> None:
        """Stop reading."""
        self._log.forget(self)
        self._file.close()


async def pump_output(pipe: int, log: OutputLog, stream: Stream) -> None:
    """Move everything from ``pipe`` (borrowed) to the log, until end-of-file or cancelled.

    The read end's description is shared with the keeper, which never reads, so making it
    non-blocking disturbs nobody.
    """
    os.set_blocking(pipe, False)
    bulk = False
    try:
        while True:
            await trio.lowlevel.wait_readable(pipe)
            try:
                size = os.readv(pipe, [_buffer])
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                return  # what end-of-file is for a terminal
            if size == 0:
                return
            log.append(stream, _buffer[:size])
            if size >= _BULK_BYTES:
                if not bulk:
                    bulk = True
                    _grow(pipe)
                unlogged = await trio.to_thread.run_sync(
                    _move_bulk, pipe, log.writer, stream, limiter=_bulk_threads
                )
                log.feed(stream, unlogged)
                log.announce(stream)
    finally:
        log.end(stream)


def _grow(pipe: int) -> None:
    """A larger pipe lets the writer go on while we write; refused above the user's quota."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _BULK_PIPE_BYTES)
    except OSError:
        return


def _move_bulk(pipe: int, writer: LogWriter, stream: Stream) -> bytes:
    """In a thread, away from the event loop: move what is there, up to one round's worth.

    Returns what the log did not take because it failed; from then on the event loop does all.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    moved = 0
    while moved < _BULK_ROUND_BYTES and not writer.has_failed():
        try:
            size = os.readv(pipe, [buffer])
        except BlockingIOError:
            break
        if size == 0:
            break
        before = writer.sizes[stream]
        writer.append(stream, buffer[:size], time.time_ns())
        if writer.has_failed():
            return bytes(buffer[writer.sizes[stream] - before : size])
        moved += size
    return b""
