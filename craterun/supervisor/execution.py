"""A further process in a running container: no log, no record; it belongs to its caller.

Where the layout allows, it has a cgroup of its own below the container's (`linux.cgroup.for_exec`),
so that all that it has started, in whatever session and with whatever parent, can be found. When
somebody ends it (a timeout, a signal from here, the end of whoever asked for it), all of that is
killed. When it ends by itself, what it leaves behind lives on, in the container's own cgroup.
"""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from craterun.core.errors import ContainerNotRunningError
from craterun.core.events import EventType, event
from craterun.core.life import ExitStatus, Record
from craterun.linux import emptying
from craterun.state.logs import Stream
from craterun.supervisor.chronicle import COMMAND_CHARACTERS
from craterun.supervisor.express import CHUNK_BYTES
from craterun.supervisor.pumps import DRAIN_SECONDS
from craterun.supervisor.terminal import Terminal
from craterun.supervisor.threads import in_thread

if TYPE_CHECKING:
    from craterun.core.execspec import ExecSpec
    from craterun.supervisor.launched import Launched
    from craterun.supervisor.link import KeeperLink
    from craterun.supervisor.services import Services

_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGKILL)
"""Signals that mean the end of the command, and so of what it has started."""


class Execution:
    """What `Supervisor.execute` started.

    Its output is read from the pipes directly, so a slow reader slows the process down, as in a
    shell pipeline; and it is waited for at the end of the supervisor's block, until all is read or
    `stop_reading` says that nobody is going to. It is killed when the supervisor is cancelled or
    dies.

    :ivar container_id: the container's id
    :ivar stdin: write end of its input, if it has one
    :ivar streams: the output streams that it has: both, or with a terminal one
    :ivar timed_out: it was stopped for having run for too long
    """

    def __init__(
        self, launched: Launched, container_id: str, spec: ExecSpec, group: str = ""
    ) -> None:
        """:param group: a cgroup of its own; removed at its end"""
        self.container_id = container_id
        self._launched = launched
        self._spec = spec
        self._group = group
        self._was_ended = False
        self.timed_out = False
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
        """Send a signal to the process. If that is one that asks for its end (SIGHUP, SIGINT,
        SIGQUIT, SIGTERM, SIGKILL), what it has started is killed when it has ended.

        :raises ContainerNotRunningError: it has ended
        """
        try:
            signal.pidfd_send_signal(self._launched.pidfd.fileno(), number)
            self._was_ended |= number in _ENDING
        except (ProcessLookupError, ValueError):
            raise ContainerNotRunningError("the command has ended") from None

    async def stop(self) -> None:
        """Ask it to end; if it does not within its time, kill it and all that it has started."""
        with suppress(ContainerNotRunningError):
            self.send_signal(self._spec.stop_signal)
            self._was_ended = True
            with trio.move_on_after(self._spec.stop_seconds) as patience:
                await self.wait()
            if patience.cancelled_caught:
                self.kill()
        await self.wait()

    def kill(self) -> None:
        """SIGKILL to all that it has started; nothing if it is over."""
        try:
            self.send_signal(signal.SIGKILL)
        except ContainerNotRunningError:
            return
        if self._group:
            emptying.kill_at_once(self._group)

    async def supervise(self, link: KeeperLink) -> None:
        """Until the process has ended and both streams have been read. Kills it if cancelled."""
        try:
            async with trio.open_nursery() as timer:
                if self._spec.timeout is not None:
                    timer.start_soon(self._stop_after, self._spec.timeout)
                await self._launched.exited.wait()
                timer.cancel_scope.cancel()
            if self._terminal is not None:
                self._terminal.close()
            await self._clear()  # before the rest is read: what is killed holds no pipe open
            if self._spec.detached or not self._pipes:
                self.stop_reading()
            self._deadline = trio.current_time() + DRAIN_SECONDS
            for patience in self._reading.values():
                patience.deadline = self._deadline
            await self._read_to_end.wait()
        finally:
            if not self._launched.exited.is_set():
                self.kill()
            with trio.CancelScope(shield=True):
                await self._launched.exited.wait()
                await self._clear()
                self.stdin.close()
                await link.release(self._launched)

    async def _stop_after(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self.timed_out = not self._launched.exited.is_set()
        await self.stop()

    async def _clear(self) -> None:
        """The command has ended: what is in its cgroup ends as well, or is the container's now."""
        if not self._group:
            return
        # Without a status, the keeper has died, and the command was killed with it.
        was_ended = self._was_ended or self._launched.status is None
        with trio.CancelScope(shield=True):
            if was_ended:
                await in_thread(emptying.end, [self._group], emptying.PATIENT_SECONDS)
            else:
                await in_thread(emptying.dissolve, self._group)
        self._group = ""


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
