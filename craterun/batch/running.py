"""What runs in a batch, as something that can be ended early."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

from craterun.batch import earlier
from craterun.core.errors import ContainerNotRunningError, CraterunError
from craterun.core.life import ExitStatus, Record
from craterun.core.spec import Spec
from craterun.linux.fd import Fd
from craterun.linux.shortage import is_no_thread
from craterun.state.loghead import Head
from craterun.state.store import Store

T = TypeVar("T")

_NO_THREAD_SECONDS = 1.0
"""Of what a container that ends would make room, nobody tells."""


class Started(Protocol):
    """A container as a batch needs it: `craterun.Container`, or what stands for one."""

    @property
    def id(self) -> str: ...

    @property
    def record(self) -> Record: ...

    @property
    def stdin(self) -> Fd: ...

    def keep_head(self, limit: int) -> Head: ...

    def send_signal(self, number: int) -> None: ...

    def kill(self) -> None: ...

    async def wait(self) -> ExitStatus: ...

    async def remove(self) -> None: ...


class Host(Protocol):
    """Who starts a batch's containers: `craterun.Supervisor`, or one that stands for it."""

    @property
    def store(self) -> Store: ...

    async def start(self, spec: Spec, *, container_id: str | None = None) -> Started:
        """:raises ShuttingDownError: it starts no more, and ends those that run"""


class Running(Protocol):
    """A container that a job is waiting for."""

    async def stop(self) -> None: ...

    async def kill(self) -> None: ...

    async def leave(self) -> None: ...


class Own:
    """One that this batch has started."""

    def __init__(self, container: Started) -> None:
        self._container = container
        self._asked = False
        self._killed = False

    async def stop(self) -> None:
        """Ask it to end, as its spec says; kill it if it does not."""
        record = self._container.record
        try:
            self._container.send_signal(record.stop_signal)
        except ContainerNotRunningError:
            return
        self._asked = True
        with trio.move_on_after(record.stop_seconds) as patience:
            await self._container.wait()
        if patience.cancelled_caught:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL it."""
        try:
            self._container.send_signal(signal.SIGKILL)
        except ContainerNotRunningError:
            return
        self._killed = True
        self._container.kill()  # which lets go of a paused one, too

    async def leave(self) -> None:
        """Its supervisor is about to ask it to end."""
        self._asked = True

    def was_ended(self, record: Record) -> bool:
        """Whether it would have gone on: it had heard of its end, or has died by our SIGKILL."""
        return self._asked or (self._killed and record.signal == signal.SIGKILL)


class Earlier:
    """One that an earlier batch has started, which was killed."""

    def __init__(self, store: Store, container_id: str) -> None:
        self._store = store
        self._id = container_id
        self._ended = False

    async def outcome(self, *, wait: bool) -> Record | None:
        """See `earlier.outcome_of`.

        :raises CraterunError: it does not go away
        """
        return await _in_own_thread(
            lambda: earlier.outcome_of(self._store, self._id, wait=wait),
        )

    async def stop(self) -> None:
        """Ask it to end; kill it if it does not."""
        await self._end(earlier.ask_to_end)

    async def kill(self) -> None:
        """SIGKILL it."""
        await self._end(earlier.kill)

    async def leave(self) -> None:
        """Ask it to end: its supervisor may be another one than ours."""
        await self.stop()

    async def _end(self, function: Callable[[Store, str], None]) -> None:
        self._ended = True
        try:
            await _in_own_thread(lambda: function(self._store, self._id))
        except CraterunError:
            return  # it has ended, which whoever waits for it learns

    def was_ended(self, record: Record) -> bool:
        """Whether it was asked to end. It may have done so by itself in the same moment."""
        return self._ended and record.exit_code != 0


async def _in_own_thread(function: Callable[[], T]) -> T:
    """In one beside all limits, since it waits as long as the container runs. Where none can be
    started, as soon as one can: in place, it would hold up all other jobs.
    """
    while True:
        try:
            return await trio.to_thread.run_sync(function, limiter=trio.CapacityLimiter(1))
        except RuntimeError as error:
            if not is_no_thread(error):
                raise
        await trio.sleep(_NO_THREAD_SECONDS)
