"""One container's whole life under supervision, on one screen: `Container.supervise`."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import trio

from craterun.core.errors import ContainerNotRunningError, CraterunError
from craterun.core.life import ExitStatus, Record, State
from craterun.core.oom import OomCount
from craterun.core.phases import with_end
from craterun.linux import cgroup, freezer
from craterun.linux.fd import Fd, is_plentiful
from craterun.linux.meter import final_figures
from craterun.state.journal import Told
from craterun.state.loghead import Head
from craterun.state.logs import Stream
from craterun.state.store import Store
from craterun.state.writer import open_writer
from craterun.supervisor.chronicle import Chronicle, with_oom
from craterun.supervisor.doorway import keep_doorway
from craterun.supervisor.folder import Folder
from craterun.supervisor.lives import Lives, Relaunch, restarted_record
from craterun.supervisor.outputs import Outputs
from craterun.supervisor.pumps import OutputLog
from craterun.supervisor.reader import LogReader
from craterun.supervisor.terminal import Terminal

if TYPE_CHECKING:
    from craterun.supervisor.launched import Launched
    from craterun.supervisor.services import Services

logger = logging.getLogger("craterun")

AtEnd = Callable[[Record, int], Record]
"""Sees the final record before it is written, and the folder (a descriptor) with the whole log;
what it returns is written, or removed. Called by the clerk; must not raise."""


class Container:
    """A container that this supervisor looks after.

    :ivar record: what metadata.json says, or is about to
    :ivar memory_limit: bytes, as last seen when the OOM killer had killed; None without a limit
    :ivar stdin: write end of the container's input, if it is interactive; whoever writes there owns
        it, and closes it to let the container see end-of-file
    """

    def __init__(
        self,
        services: Services,
        store: Store,
        record: Record,
        launched: Launched,
        directory: Fd,
        *,
        adopted: bool = False,
        told: Told | None = None,
        at_end: AtEnd | None = None,
        relaunch: Relaunch | None = None,
    ) -> None:
        """Takes ownership of ``directory``, the locked folder.

        :param adopted: another supervisor has begun with it
        :param told: what the journal has of it already
        :param at_end: called with the final record
        :param relaunch: starts it once more, if its policy may want that
        """
        self.record = record
        self._at_end = at_end
        self._terminal = Terminal(launched.stdout) if launched.terminal else None
        self.stdin = self._terminal.input() if self._terminal else launched.stdin
        self._launched = launched
        self._lives = Lives(record, directory.fileno(), relaunch)
        self._log = OutputLog(
            open_writer(directory.fileno(), record.log, resume=adopted, may_keep=is_plentiful),
            may_go_on=relaunch is not None,
            terminal=launched.terminal,
        )
        self._services = services
        self._finished = trio.Event()
        self._errors: list[str] = []
        self.memory_limit: int | None = None
        self._sigkilled = False
        self._drained = 0
        self._oom_news = trio.lowlevel.ParkingLot()
        self._chronicle = Chronicle(services, store.root, record.id, told)
        self._folder = Folder(store, directory, self._chronicle)
        kills = record.oom_kills or 0
        known = OomCount(kills, kills if record.init_oom_killed is False else 0)
        self._oom = services.oom.watch(record.cgroups, record.process, known, self._on_oom)

    @property
    def id(self) -> str:
        """The container's id, 16 hex digits."""
        return self.record.id

    @property
    def status(self) -> ExitStatus | None:
        """How it ended, or None while it has not."""
        if self.record.status is not State.STOPPED:
            return None
        return ExitStatus(self.record.exit_code, self.record.signal)

    async def wait(self) -> ExitStatus:
        """Until the container has ended, its output is in the log and its record is written."""
        await self._finished.wait()
        assert self.status is not None
        return self.status

    async def recorded(self) -> None:
        """Until metadata.json says at least what ``record`` says now."""
        await self._services.clerk.do(self._write_current)

    def _write_current(self) -> None:
        """By the clerk: bring metadata.json up to date, unless the final record was written."""
        try:
            self._folder.update(self.record)
        except OSError as error:
            self._note(f"metadata.json was not updated: {os.strerror(error.errno or 0)}")

    def _write_if_alive(self) -> None:
        """By the clerk: record that it runs; of one that has ended meanwhile, the end is enough."""
        if not self._launched.exited.is_set():
            self._write_current()
        self._chronicle.begin(self.record)

    def follow(
        self,
        stream: Stream,
        direct: Callable[[memoryview], int] | None = None,
        descriptor: int = -1,
    ) -> LogReader:
        """A reader of all output on ``stream``, from the first byte to the last. Close it.

        What is not kept any more is counted as skipped: of a container that has ended and was
        removed, all; nothing, if this is called right after the start, before anything is awaited.

        :param direct: see `OutputLog.follow`, as ``descriptor``
        """
        if not self._launched.exited.is_set():
            return self._log.follow(stream, direct, descriptor)
        try:
            folder = self._folder.opened(self.id)
        except OSError:
            return self._log.follow(stream, direct, descriptor)
        try:
            return self._log.follow(stream, direct, descriptor, folder.fileno())
        finally:
            folder.close()

    def keep_head(self, limit: int) -> Head:
        """From now on, count the output, and keep the first ``limit`` bytes of each stream.

        Called right after the start, before anything else is awaited, it misses nothing.
        """
        head = self._log.writer.head = Head(limit)
        return head

    async def remove(self) -> None:
        """Remove the folder of a container that has ended, with its log.

        :raises StateError: something in it cannot be removed
        """
        assert self.status is not None
        await self._services.clerk.do(self._folder.remove, self.record, self.status)

    def send_signal(self, number: int) -> None:
        """Send a signal to the container's first process (pidfd_send_signal(2)).

        :raises ContainerNotRunningError: it has ended
        """
        if number == signal.SIGKILL and not self._services.oom.is_doomed(self._oom):
            self._sigkilled = True
        self._lives.note_signal(number)
        try:
            signal.pidfd_send_signal(self._launched.pidfd.fileno(), number)
        except (ProcessLookupError, ValueError):
            raise ContainerNotRunningError(f"container {self.id} is not running") from None

    def resize(self, rows: int, columns: int) -> None:
        """Give the container's terminal another size; nothing if it has none."""
        if self._terminal is not None:
            self._terminal.resize(rows, columns)

    def kill(self) -> None:
        """SIGKILL the first process; the kernel kills the others with it. Nothing if it is over."""
        try:
            self.send_signal(signal.SIGKILL)
        except ContainerNotRunningError:
            return
        freezer.release_killed(self.record.cgroups)

    async def wait_oom(self, kills: int) -> int:
        """Until more than ``kills`` of its processes were killed for want of memory; how many.

        Of a container that has ended, there is no more news.
        """
        while (self.record.oom_kills or 0) <= kills:
            await self._oom_news.park()
        return self.record.oom_kills or 0

    @property
    def survives_oom(self) -> bool:
        """Whether the first process is known to have survived all OOM kills."""
        return self._oom.init_alive

    def _on_oom(self) -> None:
        """By the monitor, live."""
        self.memory_limit = self._oom.limit()
        self.record = with_oom(self.record, self._oom)
        self._services.clerk.submit(self._write_oom, self.record, self._oom.init_alive)
        self._oom_news.unpark_all()

    def _write_oom(self, record: Record, init_alive: bool) -> None:
        if not self._launched.exited.is_set():
            self._write_current()
        self._chronicle.oom(record, self.memory_limit, init_alive=init_alive)

    def give_up(self, error: CraterunError) -> None:
        """Supervision itself has failed: say so to whoever waits."""
        self._services.oom.unwatch(self._oom)
        self._note(str(error))
        self.record = self._ended(self._launched.status or ExitStatus(None))
        self._finished.set()

    # --- its life -------------------------------------------------------------------------------

    async def supervise(self) -> None:
        """From the successful execve to the final record.

        Not to be cancelled from outside (`Supervisor` shields it): whatever ends a container early
        kills it and lets this go on. Its output and its record are seen to their end, since the
        last lines before a timeout are the ones that people need.
        """
        self._services.clerk.submit(self._write_if_alive)
        if self.record.timeout is None or self.record.started is None:
            await self._live_on()
        else:
            # The timeout is that of all lives together.
            begun = self.record.created if self.record.restarts else self.record.started
            async with trio.open_nursery() as timer:
                timer.start_soon(self._stop_at, begun + timedelta(seconds=self.record.timeout))
                await self._live_on()
                timer.cancel_scope.cancel()
        await self._conclude()
        # In this order: whoever waits in another process waits for the lock, which the keeper drops
        # last, and then finds the record.
        logger.debug("%s: recorded, %s bytes logged", self.id, self._log.writer.sizes)
        self._finished.set()
        self.stdin.close()
        await self._services.link.release(self._launched)

    async def _live_on(self) -> None:
        """All lives."""
        await self._live()
        while await self._goes_on():
            await self._live()
        self._log.end_all()

    async def _live(self) -> None:
        """From the successful execve to the end of the output."""
        outputs = Outputs(self._launched, self._log, self.kill)
        outputs.begin(self._services.ready, self._services.tasks)
        try:
            if self._terminal is None or self._launched.stdout.closed:
                await self._exited()
            else:
                async with trio.open_nursery() as doorway:
                    doorway.start_soon(keep_doorway, self.id, self._launched.stdout, self._hurry)
                    await self._exited()
                    doorway.cancel_scope.cancel()
            if self._terminal is not None:
                self._terminal.close()
            logger.debug("%s: %s", self.id, self._launched.status)
            await outputs.drain(self._note)
            self._drained = time.monotonic_ns()
        finally:
            await outputs.stop()

    def _hurry(self) -> None:
        """Somebody has come to the terminal."""
        self._log.hurry(Stream.STDOUT)

    async def _goes_on(self) -> bool:
        """Whether there is another life, which has begun then."""
        status = self._launched.status or ExitStatus(None)
        if not self._log.may_go_on or not self._lives.is_another_wanted(self.record, status):
            return False
        self._count_last_kills()
        self.record = msgspec.structs.replace(
            self.record,
            status=State.RESTARTING,
            finished=datetime.now(UTC),
            exit_code=status.exit_code,
            signal=status.signal,
        )
        await self._services.clerk.do(self._write_current)
        try:
            if not await self._lives.wait(self.record):
                return False
            launched = await self._lives.begin(self._launched)
        except (CraterunError, OSError) as error:
            self._note(f"it could not be started again: {error}")
            return False
        self.stdin.close()
        self._launched = launched
        self._terminal = Terminal(launched.stdout) if launched.terminal else None
        self.stdin = self._terminal.input() if self._terminal else launched.stdin
        self._log.go_on()
        self._sigkilled = False
        self.record = restarted_record(self.record, launched)
        kills = self.record.oom_kills or 0
        self._oom = self._services.oom.watch(
            self.record.cgroups, self.record.process, OomCount(kills, kills), self._on_oom
        )
        await self._services.clerk.do(self._write_restarted, status)
        if self._lives.is_to_end():  # asked by somebody who could not know of this life yet
            self.kill()
        return True

    def _write_restarted(self, before: ExitStatus) -> None:
        self._write_current()
        self._chronicle.restarted(self.record, before)

    async def _exited(self) -> None:
        """The keeper, which watches its pidfd and is its parent, tells when and how it has ended.

        With the keeper gone, the pidfd tells when (pidfd_open(2)), and nobody how.
        """
        await self._launched.exited.wait()
        if self._launched.status is None:
            await trio.lowlevel.wait_readable(self._launched.pidfd.fileno())

    async def _stop_at(self, due: datetime) -> None:
        """At that time, ask it to end; kill it if it does not."""
        await trio.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds()))
        self.record = msgspec.structs.replace(self.record, timed_out=True)
        logger.debug("%s: has run for too long", self.id)
        with suppress(ContainerNotRunningError):
            self.send_signal(self.record.stop_signal)
        await trio.sleep(self.record.stop_seconds)
        self.kill()

    async def _conclude(self) -> None:
        """The final record: written, or removed with everything else."""
        status = self._launched.status or ExitStatus(None)
        if self._launched.status is None:
            fate = self._services.link.fate
            how = f" ({fate})" if fate else ""
            self._note(f"the keeper died{how}, and with it the knowledge of the exit code")
        self._count_last_kills()  # before `_write_end` removes the cgroup
        self.record = await self._services.clerk.do(self._write_end, status)
        self._folder.close()

    def _count_last_kills(self) -> None:
        live = self._oom.count.kills
        self._services.oom.unwatch(self._oom)
        if self._oom.error is not None:
            why = os.strerror(self._oom.error.errno or 0)
            self._note(f"processes killed for want of memory could not be counted: {why}")
        if self._oom.count.kills != live and self._oom.count.kills:
            self._on_oom()

    def _write_end(self, status: ExitStatus) -> Record:
        """By the clerk: cgroup, log files, record. Returns the final record."""
        peak, seconds = final_figures(self.record.cgroups, self._services.facts)
        if peak is not None or seconds is not None:  # a predecessor may have removed the cgroups
            self.record = msgspec.structs.replace(
                self.record, memory_peak_bytes=peak, cpu_seconds=seconds
            )
        # An exec that is just beginning may be in there, and what somebody has moved there.
        left = cgroup.end(self.record.cgroups)
        if left:
            self._note(f"cgroups still in use: {', '.join(left)}")
        writer = self._log.writer
        writer.finish()
        if (complaint := writer.complaint()) is not None:
            self._note(complaint)
        record = self._ended(status)
        if self._at_end is not None:
            record = self._at_end(record, self._folder.fileno())
        try:
            self._folder.conclude(record, status)
        except Exception as error:
            self._note(f"metadata.json was not updated: {error}")
            record = self._ended(status)
        return record

    def _ended(self, status: ExitStatus) -> Record:
        if self.record.status is State.STOPPED:
            return self.record  # by a supervisor that died between writing and letting go
        count = self._oom.count
        return msgspec.structs.replace(
            with_oom(self.record, self._oom),
            init_oom_killed=self._chronicle.judge(status, count, sigkilled=self._sigkilled),
            status=State.STOPPED,
            finished=datetime.now(UTC),
            exit_code=status.exit_code,
            signal=status.signal,
            phases_us=with_end(
                self.record.phases_us,
                self._launched.ended,
                self._launched.told,
                self._drained,
                time.monotonic_ns(),
            ),
            error="; ".join(self._errors) or None,
        )

    def _note(self, problem: str) -> None:
        if problem not in self._errors:
            self._errors.append(problem)
