"""A worker's end of a loan: a supervisor that is the server's, for a command with many containers.

The command runs in its own process as it would without a server: what it reads, writes, remembers
and waits for is nothing to the server's other clients. Only its containers are the server's. Handed
over whole, as ``run`` is, it would read lines of megabytes, open whatever files they name and write
its results on the event loop that all clients share.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import trio

from craterun.core.errors import (
    CommandNotExecutableError,
    ContainerNotRunningError,
    CraterunError,
    ShuttingDownError,
    UsageError,
    printable,
)
from craterun.core.events import EventType, event
from craterun.core.life import ExitStatus, Record
from craterun.core.spec import Spec
from craterun.core.units import argument_bytes
from craterun.linux.fd import Fd
from craterun.serve import specs
from craterun.serve.frames import MAX_REQUEST_BYTES
from craterun.serve.hello import BrokenClientError, Incoming
from craterun.serve.jobs import Desk
from craterun.serve.loans import (
    Closing,
    FromLender,
    Launch,
    Launched,
    Over,
    Refused,
    Signal,
)
from craterun.state.journal import note
from craterun.state.loghead import Head
from craterun.state.removed import remove_ended
from craterun.state.store import Store
from craterun.supervisor.admission import Admission
from craterun.supervisor.main import raise_open_files

_SERVER_LOST = 125
_MAX_MESSAGE_BYTES = 1 << 30
"""Of a server that is this program: only to have a bound."""
_LEAST_ARGUMENTS = 128 * 1024
_MOST_ARGUMENTS = 6 * 1024 * 1024
_decoder = msgspec.msgpack.Decoder(FromLender)


class BorrowedContainer:
    """A container that the server looks after: as `craterun.Container` to whoever has it.

    :ivar record: as it was at its start, and the final one as soon as it has ended
    :ivar stdin: write end of its input, if it has one
    """

    def __init__(self, lender: BorrowedSupervisor, message: Launched, stdin: Fd) -> None:
        """Takes ownership of ``stdin``."""
        self.record: Record = message.record
        self.stdin = stdin
        self._lender = lender
        self._number = message.number
        self._head = Head(lender.head_bytes)
        self._ended = trio.Event()

    @property
    def id(self) -> str:
        """16 hex digits."""
        return self.record.id

    def keep_head(self, limit: int) -> Head:
        """The beginning of the output; complete when it has ended."""
        assert limit == self._head.limit
        return self._head

    def send_signal(self, number: int) -> None:
        """To its first process.

        :raises ContainerNotRunningError: it is known to have ended
        """
        if self._ended.is_set():
            raise ContainerNotRunningError(f"container {self.id} is not running")
        self._lender.desk.tell(Signal(self._number, number))

    def kill(self) -> None:
        """SIGKILL; nothing if it is over."""
        with suppress(ContainerNotRunningError):
            self.send_signal(signal.SIGKILL)

    async def wait(self) -> ExitStatus:
        """Until it has ended, its output is in the log and its record is written."""
        await self._ended.wait()
        return ExitStatus(self.record.exit_code, self.record.signal)

    async def remove(self) -> None:
        """Remove the folder of a container that has ended, with its log.

        :raises StateError: something in it cannot be removed
        """
        await trio.to_thread.run_sync(self._remove)

    def _remove(self) -> None:
        """In the order of `supervisor.container.Container`."""
        store, record = self._lender.store, self.record
        remove_ended(store, record, ExitStatus(record.exit_code, record.signal))
        note(store.root, event(EventType.REMOVED, self.id, record.name))

    def note_end(self, message: Over) -> None:
        """By the lender."""
        message.fill(self._head)
        self.record = message.record
        self.stdin.close()
        self._ended.set()


class BorrowedSupervisor:
    """Stands for the server's supervisor. `borrow` makes one.

    :ivar store: where the containers are
    :ivar desk: the way to the server
    :ivar head_bytes: what `keep_head` will be asked for
    :ivar closing: set when the server is about to stop all containers, and to end
    """

    def __init__(self, desk: Desk, root: str, head_bytes: int, closing: trio.Event) -> None:
        self.store = Store(root)
        self.desk = desk
        self.head_bytes = head_bytes
        self.closing = closing
        # In the server, all wait in one line: one that is longer than this would be for others.
        self._admission = Admission(None)
        self._incoming = Incoming(desk.socket)
        self._count = 0
        self._asked: dict[int, trio.Event] = {}
        self._answers: dict[int, BorrowedContainer | CraterunError] = {}
        self._containers: dict[int, BorrowedContainer] = {}
        self._change = trio.lowlevel.ParkingLot()

    async def start(self, spec: Spec, *, container_id: str | None = None) -> BorrowedContainer:
        """As `craterun.Supervisor.start`, with the same errors.

        :raises ShuttingDownError: the server is ending
        """
        require_executable(spec)
        encoded = specs.encode(spec)
        if len(encoded) > MAX_REQUEST_BYTES:
            raise UsageError(f"a container described by {len(encoded)} bytes cannot be started")
        async with self._admission:
            self._count += 1
            number = self._count
            answered = self._asked[number] = trio.Event()
            self.desk.tell(Launch(number, encoded, container_id, self.head_bytes))
            # As with a supervisor of our own: what has begun is not left half-way.
            with trio.CancelScope(shield=True):
                await answered.wait()
        answer = self._answers.pop(number)
        if isinstance(answer, CraterunError):
            raise answer
        return answer

    async def serve(self) -> None:
        """Hear what the server says, until cancelled."""
        while True:
            try:
                payload = await self._incoming.receive(_MAX_MESSAGE_BYTES)
            except BrokenClientError:
                payload = None
            if payload is None:
                # It was killed. So shall we be at once, and must not end in good order, as if
                # nothing ran any more.
                os._exit(_SERVER_LOST)
            self._hear(_decoder.decode(payload))

    def _hear(self, message: FromLender) -> None:
        if isinstance(message, Closing):
            self.closing.set()
        elif isinstance(message, Over):
            self._containers.pop(message.number).note_end(message)
            self._change.unpark_all()
        elif isinstance(message, Launched):
            stdin = self._incoming.fds.pop(0) if message.has_input else Fd(-1)
            container = BorrowedContainer(self, message, stdin)
            self._containers[message.number] = container
            self._answer(message.number, container)
        elif isinstance(message, Refused):
            error = message.error()
            if isinstance(error, ShuttingDownError):
                self.closing.set()
            self._answer(message.number, error)

    def _answer(self, number: int, answer: BorrowedContainer | CraterunError) -> None:
        self._answers[number] = answer
        self._asked.pop(number).set()

    async def wait_all(self) -> None:
        """Until no container runs."""
        while self._containers:
            await self._change.park()


@asynccontextmanager
async def borrow(
    desk: Desk, root: str, *, head_bytes: int, closing: trio.Event
) -> AsyncIterator[BorrowedSupervisor]:
    """The server's supervisor, while the block runs; it ends when no container of ours runs.

    :param root: the state directory, which is the server's, too
    :param head_bytes: what `Container.keep_head` will be asked for
    :param closing: see `BorrowedSupervisor`
    """
    raise_open_files()  # for input pipes
    supervisor = BorrowedSupervisor(desk, root, head_bytes, closing)
    hearing = trio.CancelScope(shield=True)

    async def hear() -> None:
        with hearing:
            await supervisor.serve()

    async with trio.open_nursery() as tasks:
        tasks.start_soon(hear)
        try:
            yield supervisor
        finally:
            with trio.CancelScope(shield=True):
                await supervisor.wait_all()
            hearing.cancel()


def require_executable(spec: Spec) -> None:
    """Refuse here what execve(2) would, before it takes the server's time and memory.

    :raises CommandNotExecutableError: arguments and environment are longer than it takes
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    room = _MOST_ARGUMENTS
    if soft != resource.RLIM_INFINITY:
        room = min(room, max(_LEAST_ARGUMENTS, soft // 4))
    texts = (*spec.command, *(f"{key}={value}" for key, value in spec.env.items()))
    if sum(len(argument_bytes(text)) + 1 for text in texts) > room:
        raise CommandNotExecutableError(
            f"cannot execute {printable(spec.command[0])}: argument list too long for the kernel; "
            "pass data in a file or on stdin"
        )
