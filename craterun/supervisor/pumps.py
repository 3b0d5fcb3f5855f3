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
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from craterun.linux.scheduling import FEW_BYTES
from craterun.linux.shortage import SHORTAGES
from craterun.state.logindex import STREAMS
from craterun.state.logs import Stream, Then
from craterun.state.writer import Writer
from craterun.supervisor.bulk import pump_bulk
from craterun.supervisor.express import BULK_BYTES, grow, pump_express
from craterun.supervisor.reader import LogReader, own

if TYPE_CHECKING:
    from craterun.linux.relay import Relay
    from craterun.supervisor.readiness import Readiness

DRAIN_SECONDS = 2.0
"""How long a silent output pipe is still waited for after its last known writer has ended.

All of the container's output is in the pipes by then and is read in full, however long that takes.
Only somebody outside, who was handed the descriptor over a socket, can keep a pipe open; for exec,
whatever the command left running in the background.
"""


def _give_way(data: memoryview, _offset: int) -> None:
    """To whoever was woken by what a pump's thread has just written: the kernel's thread that takes
    it to a terminal, or a process that is attached.
    """
    if len(data) < FEW_BYTES:
        os.sched_yield()


class OutputLog:
    """One container's log while it is written: the writer, and how readers learn of news."""

    def __init__(self, writer: Writer, *, may_go_on: bool = False, terminal: bool = False) -> None:
        """:param may_go_on: when both streams have ended, there may be others (`go_on`)
        :param terminal: what is logged is what a terminal shows
        """
        self.writer = writer
        self.is_terminal = terminal
        self._room = trio.lowlevel.ParkingLot()
        self._held_up: set[Stream] = set()
        self._hurried: set[Stream] = set()
        self.ended = dict.fromkeys(STREAMS, False)
        self.may_go_on = may_go_on
        self._news: dict[Stream, trio.lowlevel.ParkingLot] = {}
        self._readers: list[LogReader] = []
        self._served: dict[Stream, LogReader | None] = {}
        self.on_reader: dict[Stream, Callable[[], None]] = {}

    def follow(
        self,
        stream: Stream,
        direct: Callable[[memoryview], int] | None = None,
        descriptor: int = -1,
        directory: int = -1,
    ) -> LogReader:
        """A reader of everything that ``stream`` holds and will hold. Close it after use.

        :param direct: called in a thread with what comes while the reader waits in `receive`, which
            then does not return it: writes that to where the reader would, without blocking, and
            returns how much of it
        :param descriptor: what ``direct`` writes to, if write(2) is all that it does; non-blocking,
            and open until the reader has been closed. A relay does without ``direct`` then.
        :param directory: see `LogWriter.locate`
        """
        reader = LogReader(self, stream, direct, descriptor)
        self._readers.append(reader)
        if self.is_over(stream):
            reader.secure(directory)
        if (pump := self.on_reader.get(stream)) is not None:
            pump()  # it may go another way now
        return reader

    def is_express(self, stream: Stream) -> bool:
        """Whether there is a reader to whom `way_on` would help, or who follows the log."""
        return not self.writer.is_lossy() and (
            stream in self._hurried
            or any(reader.stream == stream and reader.is_direct for reader in self._readers)
        )

    def hurry(self, stream: Stream) -> None:
        """Somebody in another process waits for each byte of ``stream`` to be in the log."""
        self._hurried.add(stream)
        if (pump := self.on_reader.get(stream)) is not None:
            pump()  # it may go another way now

    def way_on(self, stream: Stream) -> Then | None:
        """What a pump's thread calls with what was logged, for those who read ``stream`` now.

        Others, who come while it waits for the container, are woken by `announce`.
        """
        if not self._readers:
            return _give_way if stream in self._hurried else None
        readers = [reader for reader in self._readers if reader.stream is stream]
        if len(readers) == 1 and not self.is_terminal:
            return readers[0].pass_on

        def pass_on(data: memoryview, offset: int) -> None:
            for reader in readers:
                reader.pass_on(data, offset)
            if self.is_terminal:
                _give_way(data, offset)

        return pass_on

    def arm(self, relay: Relay, stream: Stream) -> bool:
        """Have ``relay`` do what `way_on` would do, by itself, if there is one reader at most."""
        hurried = self.is_terminal or stream in self._hurried

        def target(offset: int) -> int | None:
            readers = [reader for reader in self._readers if reader.stream is stream]
            self._served[stream] = readers[0] if readers else None
            if not readers:
                return -1
            return readers[0].target(offset) if len(readers) == 1 else None

        return self.writer.arm(relay, stream, target, FEW_BYTES if hurried else 0)

    def relayed(self, relay: Relay, stream: Stream, data: memoryview) -> None:
        """``relay`` has the log, with ``data`` on its way. By its thread."""
        offset = self.writer.sizes[stream]
        self.writer.relayed(relay, stream, data, self.way_on(stream))
        reader = self._served[stream]
        if reader is not None and relay.logged == len(data):
            reader.relayed(data, offset, relay.passed)

    def is_anybody_waiting(self, stream: Stream) -> bool:
        """Whether `way_on` would be of use right now."""
        return any(reader.stream is stream and reader.is_waiting for reader in self._readers)

    def is_anybody_behind(self, stream: Stream) -> bool:
        """Whether a reader has not got all that was logged, so that it must be woken."""
        size = self.writer.sizes[stream]
        # No generator: the next byte waits for it.
        for reader in self._readers:  # noqa: SIM110
            if reader.stream is stream and reader.offset < size:
                return True
        return False

    def forget(self, reader: LogReader) -> None:
        """Drop a closed reader."""
        self._readers.remove(reader)
        self.writer.halt()
        self.made_room()

    def announce(self, stream: Stream) -> None:
        """Wake readers of ``stream``."""
        if (waiting := self._news.get(stream)) is not None:
            waiting.unpark_all()

    async def wait_news(self, stream: Stream) -> None:
        """Until `announce`."""
        if (waiting := self._news.get(stream)) is None:
            waiting = self._news[stream] = trio.lowlevel.ParkingLot()
        await waiting.park()

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
        self.ended = dict.fromkeys(STREAMS, False)

    def end_all(self) -> None:
        """There is no other life."""
        self.may_go_on = False
        for stream in STREAMS:
            self.end(stream)


class Pump:
    """Moves everything from one pipe to the log, until end-of-file or `stop`.

    By a callback, as long as little comes and nobody is to be served the short way (`express`);
    then by a task.

    :ivar error: what has made it stop before
    """

    def __init__(
        self, pipe: int, log: OutputLog, stream: Stream, on_error: Callable[[], None]
    ) -> None:
        """:param pipe: borrowed until `stop` has returned
        :param on_error: called when it has stopped before, for a reason that `stop` raises then
        """
        self._on_error = on_error
        self.error: Exception | None = None
        self._pipe = pipe
        self._log = log
        self._stream = stream
        self._ready: Readiness | None = None
        self._tasks: trio.Nursery | None = None
        self._scope: trio.CancelScope | None = None
        self._done: trio.Event | None = None

    def begin(self, ready: Readiness, tasks: trio.Nursery) -> None:
        """:param tasks: outlives this pump"""
        # The description of the read end is shared with the keeper, which never reads, so making
        # it non-blocking disturbs nobody.
        os.set_blocking(self._pipe, False)
        self._tasks = tasks
        try:
            ready.watch(self._pipe, self._move)
        except OSError as error:
            if error.errno not in SHORTAGES:
                raise
            self._go_on_as_task()
            return
        self._ready = ready
        self._log.on_reader[self._stream] = self._reader_came
        self._reader_came()

    def _reader_came(self) -> None:
        if self._log.is_express(self._stream):
            self._go_on_as_task()

    def _move(self) -> None:
        """By `Readiness`: one read."""
        try:
            size = os.readv(self._pipe, [own.buffer])
            if size:
                self._log.append(self._stream, own.buffer[:size])
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # what end-of-file is for a terminal
                self._fail(error)
            size = 0
        except Exception as error:
            self._fail(error)
            size = 0
        if size == 0:
            self._unwatch()
            self._log.end(self._stream)
        elif size >= BULK_BYTES or self._log.writer.is_lossy():
            self._go_on_as_task()

    def _unwatch(self) -> None:
        if self._ready is not None:
            del self._log.on_reader[self._stream]
            self._ready.unwatch(self._pipe)
            self._ready = None

    def _go_on_as_task(self) -> None:
        assert self._tasks is not None
        self._unwatch()
        self._scope = trio.CancelScope()
        self._done = trio.Event()
        self._tasks.start_soon(self._run, self._scope, self._done)

    async def _run(self, scope: trio.CancelScope, done: trio.Event) -> None:
        try:
            with scope:
                await pump_output(self._pipe, self._log, self._stream)
        except (Exception, ExceptionGroup) as error:
            self._fail(error)
        finally:
            done.set()

    def _fail(self, error: Exception) -> None:
        self.error = error
        self._on_error()

    async def stop(self) -> None:
        """What has not been read yet is left. When this returns, nobody uses the pipe any more.

        :raises Exception: what has made it stop before
        """
        if self._ready is not None:
            self._unwatch()
            self._log.end(self._stream)
        elif self._scope is not None and self._done is not None:
            self._scope.cancel()
            with trio.CancelScope(shield=True):
                await self._done.wait()
        if self.error is not None:
            raise self.error


async def pump_output(pipe: int, log: OutputLog, stream: Stream) -> None:
    """Move everything from ``pipe`` (borrowed, non-blocking) to the log, until end-of-file or
    cancelled.
    """
    bulk = False
    buffer = own.buffer
    try:
        while True:
            await log.wait_room(stream)
            if log.is_express(stream) and (left := await pump_express(pipe, log, stream)):
                log.feed(stream, left.unlogged)
                log.announce(stream)
                if left.at_end:
                    return
            with trio.CancelScope() as scope:
                log.on_reader[stream] = scope.cancel
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
            if size >= BULK_BYTES and not log.writer.is_lossy():
                if not bulk:
                    bulk = True
                    grow(pipe)
                await pump_bulk(pipe, log, stream)
    finally:
        log.on_reader.pop(stream, None)
        log.end(stream)
