"""The server's side of its workers: some always wait for a job, forked before anybody asks."""

from __future__ import annotations

import os
import signal
import socket
from collections import deque
from collections.abc import Sequence

import msgspec
import trio

from craterun.core.errors import CraterunError
from craterun.core.life import ExitStatus
from craterun.linux.fd import Fd
from craterun.serve import frames
from craterun.serve.hello import BrokenClientError, Incoming
from craterun.serve.jobs import MESSAGE_BYTES, Born, Ended, FromSpawner, FromWorker

_READY = 2
_FORK = b"fork"
_MAX_MESSAGE_BYTES = 2 * frames.MAX_HELLO_BYTES
_spawner_decoder = msgspec.msgpack.Decoder(FromSpawner)
_worker_decoder = msgspec.msgpack.Decoder(FromWorker)


class SpawnerDiedError(CraterunError):
    """There are no workers any more."""


class Worker:
    """One process for one command.

    :ivar ended: it was reaped (then ``status`` is set), or the spawner has gone
    """

    def __init__(self, pid: int, sock: socket.socket, pidfd: Fd) -> None:
        """Takes ownership of both."""
        sock.setblocking(False)
        self.pid = pid
        self._socket = sock
        self._incoming = Incoming(sock)
        self._pidfd = pidfd
        self.ended = trio.Event()
        self.status: ExitStatus | None = None

    async def send(self, payload: bytes, fds: Sequence[Fd] = ()) -> None:
        """A frame; ``fds`` are borrowed.

        :raises OSError: the worker has ended
        """
        data = memoryview(frames.frame(payload))
        numbers = [fd.fileno() for fd in fds]
        while data:
            try:
                if numbers:
                    sent = socket.send_fds(self._socket, [data], numbers, socket.MSG_NOSIGNAL)
                else:
                    sent = self._socket.send(data, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket.fileno())
                continue
            data, numbers = data[sent:], []

    async def receive(self) -> FromWorker | None:
        """Its next message; None when it has ended."""
        try:
            payload = await self._incoming.receive(_MAX_MESSAGE_BYTES)
            return None if payload is None else _worker_decoder.decode(payload)
        except (BrokenClientError, msgspec.DecodeError):
            return None  # killed in the middle of one

    def send_signal(self, number: int) -> None:
        """Nothing if it has ended."""
        try:
            signal.pidfd_send_signal(self._pidfd.fileno(), number)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Close our ends; one that waits for a job ends by that."""
        self._incoming.close()
        self._socket.close()
        self._pidfd.close()


class Workers:
    """Keeps some workers ready. `serve` runs as long as the server does."""

    def __init__(self, pid: int, sock: socket.socket) -> None:
        """Takes ownership of the spawner, a child, and the socket to it."""
        self._pid = pid
        self._socket = sock
        self._ready: deque[Worker] = deque()
        self._alive: dict[int, Worker] = {}
        self._ordered = 0
        self._news = trio.lowlevel.ParkingLot()
        self.dead = False

    async def take(self) -> Worker:
        """A worker that waits for its job; the caller closes it.

        If it is not the last one, the next is ordered only by `refill`: to fork takes as long as
        many a command, and would take it from this one.

        :raises SpawnerDiedError: there will be none
        """
        while not self._ready:
            self._order()
            await self._news.park()
        worker = self._ready.popleft()
        if worker.ended.is_set():  # killed by somebody while it waited
            worker.close()
            return await self.take()
        if not self._ready and not self.dead:
            self.refill()
        return worker

    def refill(self) -> None:
        """Have as many ready as there should be."""
        for _ in range(_READY - len(self._ready) - self._ordered):
            if not self.dead:
                self._order()

    def _order(self) -> None:
        if self.dead:
            raise SpawnerDiedError("the process that starts commands has died")
        try:
            self._socket.send(_FORK, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return  # it has more orders than it can take
        except OSError:
            raise SpawnerDiedError("the process that starts commands has died") from None
        self._ordered += 1

    async def serve(self) -> None:
        """Hear of births and deaths, until cancelled or until the spawner dies."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._socket.fileno())
                try:
                    data, numbers, _, _ = socket.recv_fds(
                        self._socket, MESSAGE_BYTES, 2, socket.MSG_CMSG_CLOEXEC
                    )
                except BlockingIOError:
                    continue
                if not data:
                    break
                self._dispatch(_spawner_decoder.decode(data), [Fd(number) for number in numbers])
        except ConnectionError:
            pass  # it was killed
        finally:
            self.dead = True
            for worker in self._alive.values():
                worker.ended.set()
            self._news.unpark_all()

    def _dispatch(self, message: FromSpawner, fds: list[Fd]) -> None:
        if isinstance(message, Born):
            worker = Worker(message.pid, socket.socket(fileno=fds[0].take()), fds[1])
            self._ordered -= 1
            self._alive[message.pid] = worker
            self._ready.append(worker)
            self._news.unpark()
        elif isinstance(message, Ended):
            worker = self._alive.pop(message.pid)
            worker.status = ExitStatus.from_siginfo(message.code, message.status)
            worker.ended.set()

    def close(self) -> None:
        """End the spawner, and with it all that is left."""
        self._socket.close()
        for worker in self._ready:
            worker.close()
        os.waitpid(self._pid, 0)
