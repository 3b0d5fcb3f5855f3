"""The server's side of its workers: some always wait for a job, forked before anybody asks."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import trio

from craterun.core.errors import CraterunError
from craterun.core.life import ExitStatus
from craterun.linux.fd import Fd
from craterun.linux.shortage import killed
from craterun.serve import frames
from craterun.serve.hello import BrokenClientError, Incoming, close_all
from craterun.serve.jobs import MESSAGE_BYTES, Born, FromSpawner, FromWorker, Stillborn

logger = logging.getLogger("craterun")

_READY = 2
_BORN_FDS = 2
"""A worker's socket and its pidfd."""
_FORK = b"fork"
_MAX_MESSAGE_BYTES = frames.MAX_REQUEST_BYTES + 4096
"""A request with what is around it."""
_spawner_decoder = msgspec.msgpack.Decoder(FromSpawner)
_worker_decoder = msgspec.msgpack.Decoder(FromWorker)


class NoWorkerError(CraterunError):
    """There is no process for a command: the spawner has died, or something is short."""


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
        """Its next message; None when it has ended, or is about to."""
        try:
            payload = await self._incoming.receive(_MAX_MESSAGE_BYTES)
            return None if payload is None else _worker_decoder.decode(payload)
        except (BrokenClientError, msgspec.DecodeError):
            # Killed in the middle of one; or it says what it must not say, and would wait for ever
            # for us to take the rest.
            self.send_signal(signal.SIGKILL)
            return None

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


class _Place:
    """In the line of those who wait for a worker.

    :ivar settled: there is a ``worker``, or there will be none
    """

    def __init__(self) -> None:
        self.settled = trio.Event()
        self.worker: Worker | None = None

    def settle(self, worker: Worker | None) -> None:
        self.worker = worker
        self.settled.set()


class Workers:
    """Keeps some workers ready. `serve` runs as long as the server does."""

    def __init__(self, pid: int, sock: socket.socket) -> None:
        """Takes ownership of the spawner, a child, and the socket to it."""
        self._pid = pid
        self._pidfd = Fd(os.pidfd_open(pid))
        self._socket = sock
        self._reaped = False
        self._ready: deque[Worker] = deque()
        self._alive: dict[int, Worker] = {}
        self._ordered = 0
        self._line: deque[_Place] = deque()
        self.dead = False

    async def take(self) -> Worker:
        """A worker that waits for its job; the caller closes it.

        If it is not the last one, the next is ordered only by `refill`: to fork takes as long as
        many a command, and would take it from this one.

        :raises NoWorkerError: there is none, and nothing is gained by waiting for one
        """
        worker = self._ready.popleft() if self._ready else await self._wait()
        if worker.ended.is_set():  # killed by somebody while it waited
            worker.close()
            return await self.take()
        if not self._ready and not self.dead:
            self.refill()
        return worker

    async def _wait(self) -> Worker:
        place = _Place()
        self._line.append(place)
        try:
            self._order(len(self._line))
            await place.settled.wait()
        finally:
            if not place.settled.is_set():
                self._line.remove(place)
        if place.worker is None:
            raise NoWorkerError("no process could be had for a command")
        return place.worker

    def refill(self) -> None:
        """Have as many ready as there should be. One that cannot be had is not asked for again
        before the next client has come or gone: there is no room for it, and asking takes time.
        """
        with suppress(NoWorkerError):
            self._order(len(self._line) + _READY - len(self._ready))

    def _order(self, wanted: int) -> None:
        """See that at least so many are on their way.

        :raises NoWorkerError: the spawner has died
        """
        while self._ordered < wanted:
            try:
                if self.dead:
                    raise BrokenPipeError
                self._socket.send(_FORK, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return  # it has more orders than it can take; `_dispatch` asks again
            except OSError:
                raise NoWorkerError("the process that starts commands has died") from None
            self._ordered += 1

    async def serve(self) -> None:
        """Hear of births and deaths, until cancelled or until the spawner dies. Without it, the
        server lives on for its containers, and leaves commands to clients.
        """
        try:
            with suppress(ConnectionError):
                await self._hear()
        finally:
            self.dead = True
            for worker in self._alive.values():
                worker.ended.set()
            while self._line:
                self._line.popleft().settle(None)
        await trio.lowlevel.wait_readable(self._pidfd.fileno())
        code = self._reap()
        fate = f"exit code {code}"
        if code < 0:
            fate = f"signal {-code}"
            with suppress(OSError):  # nothing is worse for not knowing more
                fate = killed(-code)
        logger.error(
            "the process that starts commands has died (%s): clients do without this server now; "
            "its containers go on",
            fate,
        )

    async def _hear(self) -> None:
        """Until the spawner's end of the socket is closed.

        :raises ConnectionError: the same, amid something
        """
        while True:
            await trio.lowlevel.wait_readable(self._socket.fileno())
            try:
                data, numbers, _, _ = socket.recv_fds(
                    self._socket, MESSAGE_BYTES, _BORN_FDS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                continue
            if not data:
                return
            fds = [Fd(number) for number in numbers]
            try:
                self._dispatch(_spawner_decoder.decode(data), fds)
            finally:
                close_all(fds)

    def _dispatch(self, message: FromSpawner, fds: list[Fd]) -> None:
        """``fds`` that are not taken are the caller's to close."""
        if isinstance(message, Born | Stillborn):
            self._ordered -= 1
            worker = None
            # Without a free descriptor of ours, they are lost on the way (MSG_CTRUNC). By the
            # same, the worker's socket has no other end, and so the worker ends.
            if isinstance(message, Born) and len(fds) == _BORN_FDS:
                worker = self._welcome(message.pid, fds)
            if self._line:
                self._line.popleft().settle(worker)
            elif worker is not None:
                self._ready.append(worker)
            with suppress(NoWorkerError):
                self._order(len(self._line))
        else:
            ended = self._alive.pop(message.pid, None)
            if ended is not None:
                ended.status = ExitStatus.from_siginfo(message.code, message.status)
                ended.ended.set()

    def _welcome(self, pid: int, fds: list[Fd]) -> Worker:
        sock, pidfd = (fd.take() for fd in fds)
        worker = self._alive[pid] = Worker(pid, socket.socket(fileno=sock), Fd(pidfd))
        return worker

    def _reap(self) -> int:
        """Of the spawner, which ends: its exit code; -N if signal N has killed it."""
        self._reaped = True
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def close(self) -> None:
        """End the spawner, and with it all that is left."""
        self._socket.close()
        self._pidfd.close()
        for worker in self._ready:
            worker.close()
        if not self._reaped:
            self._reap()
