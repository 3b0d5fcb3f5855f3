"""A server's workers, with a spawner that is played by the test."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
import trio
import trio.testing

from craterun.serve.jobs import MESSAGE_BYTES, Born, Ended, FromSpawner
from craterun.serve.workers import NoWorkerError, Worker, Workers

_CLD_EXITED = 1


class Spawner:
    """The other end of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def tell(self, message: FromSpawner, fds: int = 0) -> None:
        """Send, along with so many descriptors."""
        given = [socket.socketpair() for _ in range(fds)]
        numbers = [one.fileno() for one, _ in given]
        socket.send_fds(self._socket, [msgspec.msgpack.encode(message)], numbers)
        for pair in given:
            for one in pair:
                one.close()

    def orders(self) -> int:
        """How many workers were ordered since this was asked last."""
        count = 0
        try:
            while self._socket.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT):
                count += 1
        except BlockingIOError:
            pass
        return count


@contextmanager
def played() -> Iterator[tuple[Workers, Spawner]]:
    """Nothing stays open."""
    before = os.listdir("/proc/self/fd")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with theirs:
        workers = Workers(os.posix_spawn("/bin/true", ["true"], {}), ours)
        yield workers, Spawner(theirs)
        workers.close()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("arrived", [0, 1])
def test_a_worker_whose_descriptors_were_lost_on_the_way_is_lost(arrived: int) -> None:
    """Only whoever waits for it does without; the others get theirs."""
    found: list[Worker] = []

    async def be_refused(workers: Workers) -> None:
        with pytest.raises(NoWorkerError):
            await workers.take()

    async def take(workers: Workers) -> None:
        found.append(await workers.take())

    async def main() -> None:
        with played() as (workers, spawner):
            async with trio.open_nursery() as tasks:
                tasks.start_soon(workers.serve)
                with trio.fail_after(60):
                    async with trio.open_nursery() as waiting:
                        waiting.start_soon(be_refused, workers)
                        await trio.testing.wait_all_tasks_blocked()
                        assert spawner.orders() == 1
                        spawner.tell(Born(7), fds=arrived)
                assert spawner.orders() == 0, "it is not asked again at once"
                spawner.tell(Ended(7, _CLD_EXITED, 0))
                with trio.fail_after(60):
                    async with trio.open_nursery() as waiting:
                        waiting.start_soon(take, workers)
                        await trio.testing.wait_all_tasks_blocked()
                        assert spawner.orders() == 1
                        spawner.tell(Born(8), fds=2)
                assert [worker.pid for worker in found] == [8]
                found.pop().close()
                tasks.cancel_scope.cancel()

    trio.run(main)


def test_each_who_waits_has_a_worker_ordered_and_whoever_leaves_the_line_leaves_it() -> None:
    async def main() -> None:
        with played() as (workers, spawner):
            async with trio.open_nursery() as tasks:
                tasks.start_soon(workers.serve)
                with trio.move_on_after(60):
                    async with trio.open_nursery() as waiting:
                        for _ in range(3):
                            waiting.start_soon(workers.take)
                        await trio.testing.wait_all_tasks_blocked()
                        assert spawner.orders() == 3
                        waiting.cancel_scope.cancel()
                for pid in (7, 8, 9):
                    spawner.tell(Born(pid), fds=2)
                await trio.testing.wait_all_tasks_blocked()
                with trio.fail_after(60):
                    for pid in (7, 8, 9):
                        worker = await workers.take()
                        assert worker.pid == pid
                        worker.close()
                assert spawner.orders() == 2, "a reserve, as none is left"
                tasks.cancel_scope.cancel()

    trio.run(main)
