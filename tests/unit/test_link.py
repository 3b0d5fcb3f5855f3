"""The supervisor's end of the keeper's socket when this process has no room for what comes."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
import trio.testing

from craterun.core import opcodes as op
from craterun.core.errors import CraterunError, KernelRefusedError
from craterun.keeper import wire
from craterun.supervisor.link import KeeperLink
from craterun.supervisor.lives import launch_container
from tests.unit.builders import make_run_plan, no_leaked_descriptors


class FakeKeeper:
    """The other end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def tell(self, *message: Any, fds: tuple[int, ...] = ()) -> None:
        data, memfd = wire.encode(message)
        assert memfd < 0
        self.sock.sendmsg([data], wire.ancillary(list(fds)))

    async def hear(self) -> tuple[Any, ...]:
        await trio.lowlevel.wait_readable(self.sock.fileno())
        received = wire.receive(self.sock, bytearray(wire.INLINE_BYTES + 1))
        assert received is not None
        message, fds = received
        for fd in fds:
            os.close(fd)
        assert isinstance(message, tuple)
        return message


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[KeeperLink, FakeKeeper]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        link = KeeperLink(None, ours)
        async with trio.open_nursery() as tasks:
            tasks.start_soon(link.serve)
            yield link, FakeKeeper(theirs)
            tasks.cancel_scope.cancel()
        await link.aclose()


@contextmanager
def no_room() -> Iterator[None]:
    """Nothing can be opened meanwhile."""
    had = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, had[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, had)


async def test_a_process_whose_descriptors_are_lost_is_dropped_and_the_next_one_is_not() -> None:
    errors: list[CraterunError] = []

    async def start() -> None:
        try:
            await launch_container(link, make_run_plan(), "/nowhere", 0)
        except CraterunError as error:
            errors.append(error)

    with no_leaked_descriptors():
        async with connected() as (link, keeper), trio.open_nursery() as starts:
            starts.start_soon(start)
            kind, number, *_ = await keeper.hear()
            assert kind == op.MSG_LAUNCH
            with no_room():
                keeper.tell(op.MSG_STARTED, number, 1, 2, 0, 0, 0, 0, fds=(0, 1, 2))
                await trio.testing.wait_all_tasks_blocked()
            assert await keeper.hear() == (op.MSG_DROP, number)
            launched = await link.launch(make_run_plan())
            await keeper.hear()
            keeper.tell(op.MSG_STARTED, launched.number, 1, 2, 0, 0, 0, 0, fds=(0, 1, 2))
            with trio.fail_after(60):
                await launched.settled.wait()
            assert launched.failure is None
            await link.release(launched)
            assert await keeper.hear() == (op.MSG_RELEASE, [launched.number])
    (error,) = errors
    assert isinstance(error, KernelRefusedError)
    assert error.errno == errno.EMFILE
    assert "recvmsg: Too many open files (EMFILE); this process may have" in str(error)


async def test_a_successor_without_room_gives_up_that_one_container_alone() -> None:
    adopted = []

    async def adopt() -> None:
        adopted.extend(await link.adopt())

    with no_leaked_descriptors():
        async with connected() as (link, keeper), trio.open_nursery() as adoption:
            adoption.start_soon(adopt)
            assert await keeper.hear() == (op.MSG_ADOPT,)
            with no_room():
                keeper.tell(op.MSG_ADOPTED, 5, 1, 2, b"/x", True, None, False, fds=(0, 1, 2))
                await trio.testing.wait_all_tasks_blocked()
            keeper.tell(op.MSG_ADOPTED, 6, 1, 2, b"/y", True, None, False, fds=(0, 1, 2))
            keeper.tell(op.MSG_ADOPTED, -1)
            assert await keeper.hear() == (op.MSG_DROP, 5)
        assert [launched.number for launched in adopted] == [6]
        adopted[0].close()


async def test_what_is_released_travels_in_messages_that_are_small_ones() -> None:
    async with connected() as (link, keeper):
        link._unreleased = list(range(10**6, 10**6 + 2500))
        launched = await link.launch(make_run_plan())
        message = await keeper.hear()
        assert message[5] == list(range(10**6, 10**6 + 1000))
        await link.release(launched)
        rest = [(await keeper.hear())[1] for _ in range(2)]
        assert [len(numbers) for numbers in rest] == [1000, 501]
        assert rest[1][-1] == launched.number


async def test_a_launch_that_this_process_cannot_send_is_an_error_of_that_launch() -> None:
    async with connected() as (link, keeper):
        large = make_run_plan(env={"LARGE": "x" * (wire.INLINE_BYTES + 1)})
        with no_room(), pytest.raises(OSError, match="Too many open files"):
            await link.launch(large)
        assert not link.dead
        await link.launch(large)
        assert (await keeper.hear())[0] == op.MSG_LAUNCH
