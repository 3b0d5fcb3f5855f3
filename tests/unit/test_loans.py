"""Containers on loan: what a worker and its server say to each other, and how much at once."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from craterun.core import errors
from craterun.core.life import Record, State
from craterun.core.limits import Limits
from craterun.core.spec import Spec
from craterun.linux.fd import Fd
from craterun.serve import frames, specs
from craterun.serve.borrowing import BorrowedSupervisor, borrow, require_executable
from craterun.serve.hello import Incoming
from craterun.serve.jobs import Desk
from craterun.serve.lending import Loan
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
from craterun.state.loghead import Head
from craterun.state.logindex import Stream
from craterun.supervisor.admission import default_parallel_starts

SPEC = Spec(command=("true",))


def a_record(status: State = State.RUNNING, exit_code: int | None = None) -> Record:
    return Record(
        id="0123456789abcdef", name=None, status=status, rootfs="host", command=("true",), env={},
        workdir="/", user=None, hostname="x", interactive=False, init=False, auto_remove=False,
        created=datetime.now(UTC), exit_code=exit_code,
    )  # fmt: skip


class Lender:
    """The server's end, played by the test."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._incoming = Incoming(sock)
        self._decoder = msgspec.msgpack.Decoder(FromBorrower)
        self.closing = trio.Event()

    async def hear(self) -> Launch | Signal:
        """The next message."""
        payload = await self._incoming.receive(1 << 20)
        assert payload is not None
        message: Launch | Signal = self._decoder.decode(payload)
        return message

    def tell(self, message: FromLender, fds: list[int] | None = None) -> None:
        """Send."""
        data = frames.frame(msgspec.msgpack.encode(message))
        socket.send_fds(self._socket, [data], fds or [])


@asynccontextmanager
async def on_loan(root: Path) -> AsyncIterator[tuple[BorrowedSupervisor, Lender]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        lender = Lender(theirs)
        async with borrow(Desk(ours), str(root), head_bytes=5, closing=lender.closing) as borrowed:
            yield borrowed, lender


def test_a_spec_comes_as_it_went() -> None:
    spec = Spec(
        command=("echo", "\udcff\n\0é"),
        env={"A": "\ud800"},
        limits=Limits(memory=1 << 20),
        name="x",
        timeout=0.5,
    )
    assert specs.decode(specs.encode(spec), Spec) == spec


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (errors.UsageError("no"), errors.UsageError, "no"),
        (errors.CommandNotFoundError("none"), errors.CommandNotFoundError, "none"),
        (errors.KernelRefusedError("mount it", "mount", "/x", 1), errors.CraterunError, "cannot "
         "mount it: mount /x: Operation not permitted (EPERM)"),
        (OSError(28, "No space left on device"), errors.CraterunError, "[Errno 28] No space left "
         "on device"),
    ],
    ids=["usage", "not found", "kernel", "OSError"],
)  # fmt: skip
def test_an_error_is_the_same_on_the_other_side(
    raised: Exception, kind: type[Exception], text: str
) -> None:
    error = Refused.by(7, raised).error()
    assert type(error) is kind
    assert str(error) == text
    assert type(Refused.by(7, type("Own", (errors.RootfsError,), {})("x")).error()) is (
        errors.RootfsError
    )


def test_what_execve_would_refuse_is_not_even_sent() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    room = min(6 << 20, 6 << 20 if soft < 0 else max(128 << 10, soft // 4))
    text = "x" * 100_000
    require_executable(Spec(command=("true", *[text] * (room // 100_001 - 1))))
    with pytest.raises(errors.CommandNotExecutableError, match="argument list too long"):
        require_executable(Spec(command=("true", *[text] * (room // 100_001 + 1))))


async def test_a_container_is_what_the_server_says_of_it(tmp_path: Path) -> None:
    async with on_loan(tmp_path) as (borrowed, lender), trio.open_nursery() as tasks:

        async def play() -> None:
            message = await lender.hear()
            assert isinstance(message, Launch)
            assert (message.number, message.container_id, message.head_bytes) == (1, "id", 5)
            assert specs.decode(message.spec, Spec) == SPEC
            lender.tell(Launched(1, a_record(), has_input=True), [0])
            assert await lender.hear() == Signal(1, 15)
            lender.tell(Over(1, a_record(State.STOPPED, 3), (9, 2), (b"hello", b"no")))

        tasks.start_soon(play)
        container = await borrowed.start(SPEC, container_id="id")
        head = container.keep_head(5)
        assert container.stdin.fileno() > 2
        container.send_signal(15)
        status = await container.wait()
        assert (status.exit_code, container.record.status) == (3, State.STOPPED)
        assert head.totals == {Stream.STDOUT: 9, Stream.STDERR: 2}
        assert head.kept == {Stream.STDOUT: b"hello", Stream.STDERR: b"no"}
        assert container.stdin.closed
        with pytest.raises(errors.ContainerNotRunningError):
            container.send_signal(15)
        container.kill()


async def test_no_more_starts_are_asked_for_at_once_than_one_has_a_right_to(tmp_path: Path) -> None:
    """In the server all wait in one line: who puts a thousand there keeps the others waiting."""
    async with on_loan(tmp_path) as (borrowed, lender), trio.open_nursery() as tasks:
        for _ in range(1000):
            tasks.start_soon(borrowed.start, SPEC)
        most = default_parallel_starts()
        asked = [await lender.hear() for _ in range(most)]
        with trio.move_on_after(0) as scope:
            await lender.hear()
        assert scope.cancelled_caught
        lender.tell(Launched(asked[0].number, a_record(), has_input=False))
        assert (await lender.hear()).number == most + 1
        tasks.cancel_scope.cancel()
        for number in range(2, most + 2):
            lender.tell(Launched(number, a_record(), has_input=False))
        for number in range(1, most + 2):
            lender.tell(Over(number, a_record(State.STOPPED, 0), (0, 0), (b"", b"")))


async def test_the_end_of_the_server_is_known_by_either_sign(tmp_path: Path) -> None:
    for refused in (True, False):
        async with on_loan(tmp_path) as (borrowed, lender), trio.open_nursery() as tasks:
            if refused:

                async def play(lender: Lender = lender) -> None:
                    await lender.hear()
                    lender.tell(Refused.by(1, errors.ShuttingDownError("the end")))

                tasks.start_soon(play)
                with pytest.raises(errors.ShuttingDownError, match="the end"):
                    await borrowed.start(SPEC)
            else:
                lender.tell(Closing())
            await lender.closing.wait()


class Container:
    """A container that runs until it is killed."""

    def __init__(self) -> None:
        self.record = a_record()
        self.stdin = Fd(os.open(os.devnull, os.O_WRONLY))
        self.killed = trio.Event()

    def keep_head(self, limit: int) -> Head:
        return Head(limit)

    def kill(self) -> None:
        self.killed.set()

    async def wait(self) -> None:
        await self.killed.wait()


class Busy:
    """A server and its worker, between which too many descriptors are on their way already."""

    is_ending = False

    def __init__(self) -> None:
        self.container = Container()
        self.told: list[FromLender] = []

    async def begin(self, spec: Spec, **_: object) -> Container:
        await trio.lowlevel.checkpoint()
        return self.container

    async def send(self, payload: bytes, fds: Sequence[Fd] = ()) -> None:
        await trio.lowlevel.checkpoint()
        if fds:
            raise OSError(errno.ETOOMANYREFS, "x")
        self.told.append(msgspec.msgpack.decode(payload, type=FromLender))


async def test_a_container_whose_input_cannot_be_handed_over_did_not_start() -> None:
    busy = Busy()
    async with trio.open_nursery() as tasks:
        loan = Loan(busy, busy, tasks)  # type: ignore[arg-type]  # as much as it needs of them
        loan.take(Launch(1, specs.encode(SPEC), None, 0))
    assert busy.container.killed.is_set()
    assert busy.container.stdin.closed
    (answer,) = busy.told
    assert isinstance(answer, Refused)
    assert "too many descriptors are on their way" in answer.text


async def test_leaving_waits_for_what_runs(tmp_path: Path) -> None:
    ended: list[bool] = []
    async with trio.open_nursery() as tasks, on_loan(tmp_path) as (borrowed, lender):

        async def play() -> None:
            await lender.hear()
            lender.tell(Launched(1, a_record(), has_input=False))
            await trio.testing.wait_all_tasks_blocked()
            ended.append(True)
            lender.tell(Over(1, a_record(State.STOPPED, 0), (0, 0), (b"", b"")))

        tasks.start_soon(play)
        await borrowed.start(SPEC)
        assert not ended
    assert ended == [True]
