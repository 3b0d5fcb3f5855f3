"""Whoever follows a container's output: a cursor on one stream of its log (see `pumps`)."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from craterun.linux.fd import Fd
from craterun.state.logs import Stream
from craterun.supervisor.bulk import ROUND_BYTES
from craterun.supervisor.express import CHUNK_BYTES

if TYPE_CHECKING:
    from craterun.supervisor.pumps import OutputLog

_LIVE_QUEUE_BYTES = 1024 * 1024


class _Own(threading.local):
    """One buffer for the pumps and readers of an event loop, whose thread this is: none of them
    awaits anything between filling and emptying it.
    """

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(CHUNK_BYTES))


own = _Own()


class LogReader:
    """A cursor on one stream of a log that is still being written.

    :ivar offset: how far it has read, in bytes
    :ivar skipped_bytes: what did not fit into the queue after the log had failed, and what rotation
        had removed before it was read
    """

    def __init__(
        self,
        log: OutputLog,
        stream: Stream,
        direct: Callable[[memoryview], int] | None = None,
        descriptor: int = -1,
    ) -> None:
        """:param direct: see `OutputLog.follow`, as ``descriptor``"""
        self.stream = stream
        self._direct = direct
        self._descriptor = descriptor
        self._waits = False
        self._passing = threading.Lock()
        self.skipped_bytes = 0
        self._log = log
        self._file = Fd(-1)
        self._base = 0
        self.offset = 0
        self._secured: deque[tuple[Fd, int]] | None = None
        self._live: deque[bytes] = deque()
        self._live_bytes = 0
        self._closed = False

    @property
    def is_direct(self) -> bool:
        """Whether it has said where its bytes go."""
        return self._direct is not None

    @property
    def is_waiting(self) -> bool:
        """Whether what comes next can be passed on to it."""
        return self._waits and self._direct is not None

    @property
    def is_behind(self) -> bool:
        """Whether there is something in the log for it to read."""
        return self.offset < self._log.writer.sizes[self.stream]

    def pass_on(self, data: memoryview, offset: int) -> None:
        """In the thread of the pump, which has just logged ``data``, at ``offset``.

        If the reader had read all before that and waits, it waits for these bytes, and goes on
        waiting: what it is told is that it has them.
        """
        # Not waited for: whoever has it reads or leaves, and so does not wait for these bytes. A
        # reader asks for the writer's lock meanwhile, which we hold.
        if not self._passing.acquire(False):
            return
        try:
            direct = self._direct
            if self._waits and self.offset == offset and direct is not None:
                self.offset = offset + direct(data)
        finally:
            self._passing.release()

    def target(self, offset: int) -> int | None:
        """The descriptor to which a relay may pass on what comes at ``offset``."""
        ready = self.is_waiting and self._descriptor >= 0 and self.offset == offset
        return self._descriptor if ready else None

    def relayed(self, data: memoryview, offset: int, passed: int) -> None:
        """A relay has passed on so much of ``data``, or has failed to."""
        with self._passing:
            if passed < 0:  # the reader's own function knows what to do about it
                passed = 0 if self._direct is None else self._direct(data)
            self.offset = offset + passed

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
                size = self._read(own.buffer)
                if size:
                    return bytes(own.buffer[:size])
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
                if self._descriptor >= 0:
                    self._log.writer.halt()  # nor what a relay passes on

    def read_on(self, take: Callable[[int, int, int], int]) -> None:
        """Have ``take`` copy what is in the log now, as long as it takes anything.

        For a thread, while nobody awaits `receive`: whoever is far behind takes much at a time,
        and not a trip through the event loop for each chunk.

        :param take: gets a file of the log, an offset in it and a number of bytes, and returns how
            many of them it has taken, 0 at the end of the file; -1 if there is no use in more
        """
        taken = 0
        while taken < ROUND_BYTES and self.is_behind:
            with self._passing:
                if self._closed:
                    return
                # A duplicate: `close` does not wait for a disk that we may be waiting for.
                file = Fd(-1 if self._file.closed else os.dup(self._file.fileno()))
                offset = self.offset - self._base
            size = 0
            if not file.closed:
                try:
                    size = take(file.fileno(), offset, ROUND_BYTES)
                finally:
                    file.close()
            if size < 0:
                return
            taken += size
            with self._passing:
                self.offset += size
                if size == 0 and not self._closed:
                    self._go_to_next_file()

    def _read(self, buffer: memoryview) -> int:
        """The next bytes from the log; 0 if they are in another file, or nowhere any more."""
        with self._passing:  # what is in a thread may read as well
            if not self._file.closed:
                size = os.preadv(self._file.fileno(), [buffer], self.offset - self._base)
                self.offset += size
                if size:
                    return size
            self._go_to_next_file()
            return 0

    def _go_to_next_file(self) -> None:
        before = -1 if self._file.closed else self._base
        self._file.close()
        if self._secured is None:
            number, self._base = self._log.writer.locate(self.stream, self.offset)
            self._file = Fd(number)
        elif self._secured:
            self._file, self._base = self._secured.popleft()
        if self._base > self.offset:  # what was in between has been removed
            self._skip_to(self._base)
        elif self._file.closed or (self._secured is None and self._base == before):
            # Somebody truncated the file: what was in it cannot be had any more.
            self._skip_to(self._log.writer.sizes[self.stream])

    def _skip_to(self, offset: int) -> None:
        self.skipped_bytes += offset - self.offset
        self.offset = offset

    def secure(self, directory: int = -1) -> None:
        """The stream has ended. Open all that is still unread: the container may be removed.

        :param directory: see `LogWriter.locate`
        """
        with self._passing:
            self._secure(directory)

    def _secure(self, directory: int) -> None:
        if self._secured is not None:
            return
        end = self._log.writer.sizes[self.stream]
        offset = self.offset
        self._secured = deque()
        try:
            while offset < end:
                number, base = self._log.writer.locate(self.stream, offset, directory)
                self._secured.append((Fd(number), base))
                offset = max(base + os.fstat(number).st_size, offset + 1)
        except OSError:
            return  # too many open files, or a damaged folder: it will be counted as skipped
        self._file.close()

    def close(self) -> None:
        """Stop reading. Nothing if it was closed before."""
        with self._passing:
            if self._closed:
                return
            self._closed = True
            self._direct = None
            while self._secured:
                self._secured.popleft()[0].close()
            self._file.close()
        self._log.forget(self)
