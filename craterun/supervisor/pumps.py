"""From a container's output pipes to its log, and from there to whoever is attached.

The log is the only buffer. A pump moves bytes from the pipe to the log as fast as they come; a
reader follows the log at its own pace, however slow, with a cursor of its own. So no reader ever
holds up the container or another reader, and memory does not grow with what is unread. A reader
that falls so far behind that rotation removes what it has not read is told how much that was.

A reader that is not behind need not go the long way: if it has said where its bytes go
(``direct``), a pump in a thread of its own (`express`) writes them there as soon as they are in the
log, as far as that is possible without waiting. Not before: a supervisor can be killed at any
moment, and what somebody has seen must be what `logs` shows.

Readers are fed directly, each through a bounded queue, in two cases. When the log has failed (disk
full), what does not fit is counted as skipped. When no log is kept at all, the pump waits until
every reader has room, so that nothing is lost: as in a shell's pipeline, a reader that stops then
holds up the container.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable

import trio

from craterun.linux.fd import Fd
from craterun.linux.shortage import is_no_thread
from craterun.state.logs import Stream, Writer
from craterun.supervisor.express import BULK_BYTES, CHUNK_BYTES, grow, pump_express

DRAIN_SECONDS = 2.0
"""How long a silent output pipe is still waited for after its last known writer has ended.

All of the container's output is in the pipes by then and is read in full, however long that takes.
Only somebody outside, who was handed the descriptor over a socket, can keep a pipe open; for exec,
whatever the command left running in the background.
"""

_BULK_ROUND_BYTES = 8 * 1024 * 1024
_LIVE_QUEUE_BYTES = 1024 * 1024


class _Own(threading.local):
    """One buffer for the pumps and readers of an event loop, whose thread this is: none of them
    awaits anything between filling and emptying it.
    """

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(CHUNK_BYTES))


_own = _Own()
_bulk_threads = trio.CapacityLimiter(4)


class OutputLog:
    """One container's log while it is written: the writer, and how readers learn of news."""

    def __init__(self, writer: Writer, *, may_go_on: bool = False) -> None:
        """:param may_go_on: when both streams have ended, there may be others (`go_on`)"""
        self.writer = writer
        self._room = trio.lowlevel.ParkingLot()
        self._held_up: set[Stream] = set()
        self.ended = dict.fromkeys(Stream, False)
        self.may_go_on = may_go_on
        self._news = {stream: trio.lowlevel.ParkingLot() for stream in Stream}
        self._readers: list[LogReader] = []
        self.waits = {stream: trio.CancelScope() for stream in Stream}

    def follow(
        self, stream: Stream, direct: Callable[[memoryview], int] | None = None
    ) -> LogReader:
        """A reader of everything that ``stream`` holds and will hold. Close it after use.

        :param direct: called in a thread with what comes while the reader waits in `receive`, which
            then does not return it: writes that to where the reader would, without blocking, and
            returns how much of it
        """
        reader = LogReader(self, stream, direct)
        self._readers.append(reader)
        if self.is_over(stream):
            reader.secure()
        self.waits[stream].cancel()  # the pump may go another way now
        return reader

    def is_express(self, stream: Stream) -> bool:
        """Whether there is a reader to whom `pass_on` would help."""
        return not self.writer.is_lossy() and any(
            reader.stream == stream and reader.is_direct for reader in self._readers
        )

    def pass_on(self, stream: Stream, data: memoryview) -> None:
        """In a pump's thread: what was logged last, for readers who wait for just that."""
        offset = self.writer.sizes[stream] - len(data)
        for reader in self._readers:
            if reader.stream == stream:
                reader.pass_on(data, offset)

    def is_anybody_behind(self, stream: Stream) -> bool:
        """Whether a reader has not got all that was logged, so that it must be woken."""
        return any(reader.stream == stream and reader.is_behind for reader in self._readers)

    def forget(self, reader: LogReader) -> None:
        """Drop a closed reader."""
        self._readers.remove(reader)
        self.made_room()

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
        if self.writer.is_lossy():
            self.feed(stream, bytes(data[self.writer.sizes[stream] - before :]))
        self.announce(stream)

    def feed(self, stream: Stream, data: bytes) -> None:
        """Give readers what the log could not take."""
        for reader in self._readers:
            if reader.stream == stream:
                reader.offer(data)

    def made_room(self) -> None:
        """A reader has taken something, or has left."""
        self._room.unpark_all()

    async def wait_room(self, stream: Stream) -> None:
        """If there is no log, and none was lost: until all readers of ``stream`` have room."""
        while self._lossless_feed and any(
            reader.stream == stream and reader.is_full for reader in self._readers
        ):
            self._held_up.add(stream)
            await self._room.park()
        self._held_up.discard(stream)

    def is_held_up(self, stream: Stream) -> bool:
        """Whether the pump of ``stream`` waits for a reader, and not for the container."""
        return stream in self._held_up

    @property
    def _lossless_feed(self) -> bool:
        return self.writer.is_lossy() and self.writer.error is None

    async def wait_end(self, stream: Stream) -> None:
        """Until `end`."""
        while not self.ended[stream]:
            await self.wait_news(stream)

    def end(self, stream: Stream) -> None:
        """Nothing more will come on ``stream``, unless there may be another life."""
        self.ended[stream] = True
        if self.is_over(stream):
            for reader in self._readers:
                if reader.stream == stream:
                    reader.secure()
        self.announce(stream)

    def is_over(self, stream: Stream) -> bool:
        """Whether readers of ``stream`` have nothing more to wait for."""
        return self.ended[stream] and not self.may_go_on

    def go_on(self) -> None:
        """Another life begins."""
        self.ended = dict.fromkeys(Stream, False)

    def end_all(self) -> None:
        """There is no other life."""
        self.may_go_on = False
        for stream in Stream:
            self.end(stream)


class LogReader:
    """A cursor on one stream of a log that is still being written.

    :ivar skipped_bytes: what did not fit into the queue after the log had failed, and what rotation
        had removed before it was read
    """

    def __init__(
        self, log: OutputLog, stream: Stream, direct: Callable[[memoryview], int] | None = None
    ) -> None:
        self.stream = stream
        self._direct = direct
        self._waits = False
        self._passing = threading.Lock()
        self.skipped_bytes = 0
        self._log = log
        self._file = Fd(-1)
        self._base = 0
        self._offset = 0
        self._secured: deque[tuple[Fd, int]] | None = None
        self._live: deque[bytes] = deque()
        self._live_bytes = 0
        self._closed = False

    @property
    def is_direct(self) -> bool:
        """Whether it has said where its bytes go."""
        return self._direct is not None

    @property
    def is_behind(self) -> bool:
        """Whether there is something in the log for it to read."""
        return self._offset < self._log.writer.sizes[self.stream]

    def pass_on(self, data: memoryview, offset: int) -> None:
        """In the thread of the pump, which has just logged ``data``, at ``offset``.

        If the reader had read all before that and waits, it waits for these bytes, and goes on
        waiting: what it is told is that it has them.
        """
        # Not waited for: whoever has it reads or leaves, and so does not wait for these bytes. A
        # reader asks for the writer's lock meanwhile, which we hold.
        if not self._passing.acquire(blocking=False):
            return
        try:
            if self._waits and self._direct is not None and self._offset == offset:
                self._offset += self._direct(data)
        finally:
            self._passing.release()

    def offer(self, data: bytes) -> None:
        """Take ``data``, which the log has not, into the queue if there is room."""
        if self._live_bytes + len(data) > _LIVE_QUEUE_BYTES:
            self.skipped_bytes += len(data)
        elif data:
            self._live.append(data)
            self._live_bytes += len(data)

    @property
    def is_full(self) -> bool:
        """Whether another chunk might not fit into the queue."""
        return self._live_bytes > _LIVE_QUEUE_BYTES - CHUNK_BYTES

    async def receive(self) -> bytes:
        """The next bytes, at most CHUNK_BYTES; b"" at the end."""
        while True:
            if self.is_behind:
                size = self._read(_own.buffer)
                if size:
                    return bytes(_own.buffer[:size])
                continue
            if self._live:
                data = self._live.popleft()
                self._live_bytes -= len(data)
                self._log.made_room()
                return data
            if self._log.is_over(self.stream):
                return b""
            self._waits = True
            try:
                await self._log.wait_news(self.stream)
            finally:
                with self._passing:  # what is being passed on is not to be read as well
                    self._waits = False

    def read_on(self, take: Callable[[memoryview], bool]) -> None:
        """Call ``take`` with what the log has now, chunk by chunk, until it returns False.

        For a thread, while nobody awaits `receive`: whoever is far behind takes much at a time,
        and not a trip through the event loop for each chunk.
        """
        buffer = memoryview(bytearray(CHUNK_BYTES))
        taken = 0
        while taken < _BULK_ROUND_BYTES and not self._closed and self.is_behind:
            size = self._read(buffer)
            taken += size
            if size and not take(buffer[:size]):
                return

    def _read(self, buffer: memoryview) -> int:
        """The next bytes from the log; 0 if they are in another file, or nowhere any more."""
        with self._passing:  # `secure` and `close` come from the event loop
            return self._read_locked(buffer)

    def _read_locked(self, buffer: memoryview) -> int:
        if not self._file.closed:
            size = os.preadv(self._file.fileno(), [buffer], self._offset - self._base)
            self._offset += size
            if size:
                return size
        before = -1 if self._file.closed else self._base
        self._file.close()
        if self._secured is None:
            number, self._base = self._log.writer.locate(self.stream, self._offset)
            self._file = Fd(number)
        elif self._secured:
            self._file, self._base = self._secured.popleft()
        if self._base > self._offset:  # what was in between has been removed
            self._skip_to(self._base)
        elif self._file.closed or (self._secured is None and self._base == before):
            # Somebody truncated the file: what was in it cannot be had any more.
            self._skip_to(self._log.writer.sizes[self.stream])
        return 0

    def _skip_to(self, offset: int) -> None:
        self.skipped_bytes += offset - self._offset
        self._offset = offset

    def secure(self) -> None:
        """The stream has ended. Open all that is still unread: the container may be removed."""
        with self._passing:
            self._secure()

    def _secure(self) -> None:
        if self._secured is not None:
            return
        end = self._log.writer.sizes[self.stream]
        offset = self._offset
        self._secured = deque()
        try:
            while offset < end:
                number, base = self._log.writer.locate(self.stream, offset)
                self._secured.append((Fd(number), base))
                offset = max(base + os.fstat(number).st_size, offset + 1)
        except OSError:
            return  # too many open files, or a damaged folder: it will be counted as skipped
        self._file.close()

    def close(self) -> None:
        """Stop reading."""
        with self._passing:
            self._closed = True
            self._direct = None
            while self._secured:
                self._secured.popleft()[0].close()
            self._file.close()
        self._log.forget(self)


async def pump_output(pipe: int, log: OutputLog, stream: Stream) -> None:
    """Move everything from ``pipe`` (borrowed) to the log, until end-of-file or cancelled.

    The read end's description is shared with the keeper, which never reads, so making it
    non-blocking disturbs nobody.
    """
    os.set_blocking(pipe, False)
    bulk = False
    buffer = _own.buffer
    try:
        while True:
            if log.is_express(stream) and (left := await pump_express(pipe, log, stream)):
                log.feed(stream, left.unlogged)
                log.announce(stream)
                if left.at_end:
                    return
            with trio.CancelScope() as log.waits[stream]:
                await trio.lowlevel.wait_readable(pipe)
            try:
                size = os.readv(pipe, [buffer])
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                return  # what end-of-file is for a terminal
            if size == 0:
                return
            log.append(stream, buffer[:size])
            await log.wait_room(stream)
            if size >= BULK_BYTES and not log.writer.is_lossy():
                if not bulk:
                    bulk = True
                    grow(pipe)
                try:
                    unlogged = await trio.to_thread.run_sync(
                        _move_bulk, pipe, log.writer, stream, limiter=_bulk_threads
                    )
                except RuntimeError as error:
                    if not is_no_thread(error):
                        raise
                    continue  # the event loop moves it, in smaller pieces
                log.feed(stream, unlogged)
                log.announce(stream)
    finally:
        log.end(stream)


def _move_bulk(pipe: int, writer: Writer, stream: Stream) -> bytes:
    """In a thread, away from the event loop: move what is there, up to one round's worth.

    Returns what the log did not take because it failed; from then on the event loop does all.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    moved = 0
    while moved < _BULK_ROUND_BYTES and not writer.is_lossy():
        try:
            size = os.readv(pipe, [buffer])
        except BlockingIOError:
            break
        if size == 0:
            break
        before = writer.sizes[stream]
        writer.append(stream, buffer[:size], time.time_ns())
        if writer.is_lossy():
            return bytes(buffer[writer.sizes[stream] - before : size])
        moved += size
    return b""
