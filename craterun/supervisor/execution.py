"""A further process in a running container: no log, no record; it belongs to its caller."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

import trio

from craterun.core.errors import ContainerNotRunningError
from craterun.core.events import EventType, event
from craterun.core.life import ExitStatus, Record
from craterun.state.logs import Stream
from craterun.supervisor.chronicle import COMMAND_CHARACTERS
from craterun.supervisor.express import CHUNK_BYTES
from craterun.supervisor.pumps import DRAIN_SECONDS
from craterun.supervisor.terminal import Terminal

if TYPE_CHECKING:
    from craterun.supervisor.link import KeeperLink, Launched
    from craterun.supervisor.services import Services


class Execution:
    """What `Supervisor.execute` started.

    Its output is read from the pipes directly, so a slow reader slows the process down, as in a
    shell pipeline. It is killed when the supervisor is cancelled or dies.

    :ivar stdin: write end of its input, if it has one
    :ivar streams: the output streams that it has: both, or with a terminal one
    """

    def __init__(self, launched: Launched) -> None:
        self._launched = launched
        self._terminal = Terminal(launched.stdout) if launched.terminal else None
        self.stdin = self._terminal.input() if self._terminal else launched.stdin
        pipes = {Stream.STDOUT: launched.stdout, Stream.STDERR: launched.stderr}
        self._pipes = {stream: pipe for stream, pipe in pipes.items() if not pipe.closed}
        self.streams = tuple(self._pipes)
        self._reading: dict[Stream, trio.CancelScope] = {}
        self._deadline = float("inf")
        self._read_to_end = trio.Event()
        self._ended: set[Stream] = set()
        for pipe in self._pipes.values():
            os.set_blocking(pipe.fileno(), False)

    @property
    def pid(self) -> int:
        """In the host's pid namespace."""
        return self._launched.pid

    async def receive(self, stream: Stream) -> bytes:
        """The next bytes of ``stream``; b"" at its end.

        The end is the end of the last process that holds the stream, or, `DRAIN_SECONDS` of
        silence after the command itself has ended: what it left in the background may live on.
        """
        pipe = self._pipes[stream].fileno()
        data = b""
        while True:
            try:
                data = os.read(pipe, CHUNK_BYTES)
                break
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                break  # what end-of-file is for a terminal
            with trio.CancelScope(deadline=self._deadline) as patience:
                self._reading[stream] = patience
                await trio.lowlevel.wait_readable(pipe)
            del self._reading[stream]
            if patience.cancelled_caught:
                break
        if not data:
            self._ended.add(stream)
            if len(self._ended) == len(self._pipes):
                self._read_to_end.set()
        return data

    def stop_reading(self) -> None:
        """The rest of the output is of no interest."""
        self._read_to_end.set()

    async def wait(self) -> ExitStatus:
        """Until the command has ended; its output may still have to be read."""
        await self._launched.exited.wait()
        return self._launched.status or ExitStatus(None)

    def resize(self, rows: int, columns: int) -> None:
        """Give the command's terminal another size; nothing if it has none."""
        if self._terminal is not None:
            self._terminal.resize(rows, columns)

    def send_signal(self, number: int) -> None:
        """Send a signal to the process.

        :raises ContainerNotRunningError: it has ended
        """
        try:
            signal.pidfd_send_signal(self._launched.pidfd.fileno(), number)
        except (ProcessLookupError, ValueError):
            raise ContainerNotRunningError("the command has ended") from None

    def kill(self) -> None:
        """SIGKILL; nothing if it is over."""
        try:
            self.send_signal(signal.SIGKILL)
        except ContainerNotRunningError:
            return

    async def supervise(self, link: KeeperLink) -> None:
        """Until the process has ended and both streams have been read. Kills it if cancelled."""
        try:
            await self._launched.exited.wait()
            if self._terminal is not None:
                self._terminal.close()
            if not self._pipes:
                self.stop_reading()
            self._deadline = trio.current_time() + DRAIN_SECONDS
            for patience in self._reading.values():
                patience.deadline = self._deadline
            await self._read_to_end.wait()
        finally:
            self.kill()
            with trio.CancelScope(shield=True):
                await self._launched.exited.wait()
                self.stdin.close()
                await link.release(self._launched)


async def see_through(
    execution: Execution, services: Services, root: str, record: Record, command: tuple[str, ...]
) -> None:
    """Supervise ``execution`` to its end, and tell of it in the journal of ``root``.

    :param record: the container's
    """
    journal, pid = services.journal(root), execution.pid
    text = os.fsencode(" ".join(command)).decode("utf-8", "backslashreplace")
    begun = event(
        EventType.EXEC, record.id, record.name, pid=pid, command=text[:COMMAND_CHARACTERS]
    )
    services.clerk.submit(journal.append, begun)
    try:
        await execution.supervise(services.link)
    finally:
        with trio.CancelScope(shield=True):
            code = (await execution.wait()).exit_code
            ended = event(EventType.EXEC_EXITED, record.id, record.name, pid=pid, exit_code=code)
            await services.clerk.do(journal.append, ended)
