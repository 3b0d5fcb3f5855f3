"""The server's end of a loan: containers that it starts and looks after for one of its workers."""

from __future__ import annotations

import logging
import signal
from typing import Protocol

import msgspec
import trio

from craterun.core.errors import (
    ContainerNotRunningError,
    CraterunError,
    KernelRefusedError,
    ShuttingDownError,
)
from craterun.core.spec import Spec
from craterun.linux import heap
from craterun.linux.fd import Fd
from craterun.linux.shortage import explained
from craterun.serve import specs
from craterun.serve.loans import (
    Closing,
    FromBorrower,
    FromLender,
    Launch,
    Launched,
    Over,
    Refused,
    Signal,
)
from craterun.serve.workers import Worker
from craterun.supervisor.container import Container

logger = logging.getLogger("craterun")


class Lender(Protocol):
    """What a loan needs of its server."""

    @property
    def is_ending(self) -> bool:
        """Whether nothing more is to be started."""

    async def begin(
        self, spec: Spec, *, container_id: str | None = None, look_again: bool = True
    ) -> Container:
        """Start a container, which is stopped at the end of the server."""


class Loan:
    """Containers of one worker. If that is killed, they go on, as those of a batch always do."""

    def __init__(self, lender: Lender, worker: Worker, tasks: trio.Nursery) -> None:
        """:param tasks: as long as somebody listens to the worker"""
        self._lender = lender
        self._worker = worker
        self._tasks = tasks
        self._containers: dict[int, Container] = {}
        self._turn = trio.Lock()
        self._has_looked = False

    def take(self, message: FromBorrower) -> None:
        """Never waits: whoever reads from the worker is always ready to read."""
        if isinstance(message, Launch):
            self._tasks.start_soon(self._see_through, message)
        elif isinstance(message, Signal):
            self._pass_on(message)

    def announce_end(self) -> None:
        """All containers are about to be stopped."""
        self._tasks.start_soon(self._tell, Closing())

    def close(self) -> None:
        """Nobody listens to the worker any more, nor to what is told to it."""
        self._containers.clear()
        heap.give_back()  # outputs of many containers may have been kept at once

    def _pass_on(self, message: Signal) -> None:
        container = self._containers.get(message.number)
        if container is None:
            return
        if message.signal == signal.SIGKILL:
            container.kill()  # which lets go of a paused one, too
            return
        try:
            container.send_signal(message.signal)
        except ContainerNotRunningError:
            return  # whose end is on its way to the worker

    async def _see_through(self, message: Launch) -> None:
        """From the start of a container to its end."""
        try:
            container = await self._launch(message)
        except (CraterunError, OSError) as error:
            await self._tell(Refused.by(message.number, error))
            return
        except Exception as error:
            logger.exception("a container could not be started")
            await self._tell(Refused.by(message.number, CraterunError(f"internal: {error!r}")))
            return
        # From the start to here, nothing was awaited: no byte of the output is missed.
        head = container.keep_head(message.head_bytes)
        self._containers[message.number] = container
        stdin = Fd(-1 if container.stdin.closed else container.stdin.take())
        try:
            has_input = not stdin.closed
            answer = Launched(message.number, container.record, has_input)
            with explained("hand over the container's input"):
                await self._tell(answer, [stdin] if has_input else [])
        except KernelRefusedError as error:
            self._containers.pop(message.number, None)
            container.kill()
            await self._tell(Refused.by(message.number, error))
            return
        finally:
            stdin.close()
        await container.wait()
        self._containers.pop(message.number, None)
        await self._tell(Over.of(message.number, container.record, head))

    async def _launch(self, message: Launch) -> Container:
        if self._lender.is_ending:
            raise ShuttingDownError("the server is being shut down")
        look_again, self._has_looked = not self._has_looked, True
        return await self._lender.begin(
            specs.decode(message.spec, Spec),
            container_id=message.container_id,
            look_again=look_again,
        )

    async def _tell(self, message: FromLender, fds: list[Fd] | None = None) -> None:
        async with self._turn:
            try:
                await self._worker.send(msgspec.msgpack.encode(message), fds or ())
            except ConnectionError:
                return  # it was killed
