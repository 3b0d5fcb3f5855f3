"""One client, from its hello to its exit code."""

from __future__ import annotations

import math
import signal
import socket
from typing import Protocol

import msgspec
import trio

from craterun.linux.fd import Fd
from craterun.serve import frames
from craterun.serve.hello import BrokenClientError, Hello, Incoming, close_all, decode_signal
from craterun.serve.jobs import Answer, Code, Decline, HandOver, Start
from craterun.serve.lending import Lender, Loan
from craterun.serve.loans import Launch, Signal
from craterun.serve.workers import NoWorkerError, Worker, Workers

_PENDING_SIGNALS = 64
_PASSED_ON = frozenset(
    {
        signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
        signal.SIGUSR2, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT,
    }
)  # fmt: skip


class Peer:
    """A client whose container runs in the foreground of its terminal, not of ours.

    :ivar hello: what it is
    :ivar streams: its stdin, stdout and stderr
    :ivar signals: numbers that it was sent and that are to be forwarded
    :ivar window_changes: SIGWINCH, whenever its terminal has another size
    :ivar gone: it has died; the container is to go on all the same
    """

    def __init__(self, hello: Hello, streams: tuple[Fd, ...]) -> None:
        self.hello = hello
        self.streams = streams
        self._signals, self.signals = trio.open_memory_channel[int](_PENDING_SIGNALS)
        self._window_changes, self.window_changes = trio.open_memory_channel[int](1)
        self.gone = trio.Event()

    def deliver(self, number: int) -> None:
        """It was sent a signal. What nobody has taken yet is not queued for ever."""
        channel = self._window_changes if number == signal.SIGWINCH else self._signals
        try:
            channel.send_nowait(number)
        except (trio.WouldBlock, trio.BrokenResourceError):
            return


class House(Lender, Protocol):
    """What an attendance needs of its server."""

    workers: Workers

    @property
    def leaves_containers(self) -> bool:
        """Whether they go on after its end."""

    async def start(self, request: bytes) -> Answer:
        """Start a container in the background."""

    async def run(self, request: bytes, peer: Peer) -> int:
        """Run a container in the foreground of ``peer``; its exit code."""


class Attendance:
    """Has a worker run a client's command, and tells each of the other's fate."""

    def __init__(
        self,
        house: House,
        sock: socket.socket,
        incoming: Incoming,
        hello: Hello,
        payload: bytes,
        fds: list[Fd],
    ) -> None:
        """``fds`` are taken, the rest is borrowed.

        :param payload: ``hello`` as it came
        """
        self._house = house
        self._socket = sock
        self._incoming = incoming
        self._hello = hello
        self._payload = payload
        self._fds = fds
        self._worker: Worker | None = None
        self._peer: Peer | None = None
        self._loan: Loan | None = None
        self._sent: list[int] = []
        self._gone = False

    @property
    def is_attached(self) -> bool:
        """Whether it is that of a container in the foreground, or of many."""
        return self._peer is not None or self._loan is not None

    def announce_end(self) -> None:
        """The server is about to stop all containers."""
        if self._loan is not None:
            self._loan.announce_end()

    async def run(self) -> None:
        """Until the command has ended and the client knows."""
        try:
            reply = await self._run()
        finally:
            if trio.current_effective_deadline() == -math.inf:  # cancelled
                self._reply(frames.reply(frames.SHUT_DOWN, self._house.leaves_containers))
            # Whoever reads the client's output sees its end before the client has ended.
            close_all(self._fds)
        if reply is not None:
            self._reply(reply)

    async def _run(self) -> bytes | None:
        # Nothing is run before this is said: a client that could not be told has died, or has taken
        # its request back, and runs the command itself.
        if not self._reply(frames.reply(frames.ACCEPTED)):
            return None
        try:
            self._worker = await self._house.workers.take()
        except NoWorkerError:
            return frames.reply(frames.DECLINED, 1)
        reply = None
        try:
            async with trio.open_nursery() as tasks:
                tasks.start_soon(self._listen)
                reply = await self._conduct(self._worker, tasks)
                tasks.cancel_scope.cancel()
        finally:
            self._worker.send_signal(signal.SIGKILL)  # of no effect, unless we are cancelled
            self._worker.close()
            if self._loan is not None:
                self._loan.close()
            self._house.workers.refill()
        return reply

    async def _conduct(self, worker: Worker, tasks: trio.Nursery) -> bytes | None:
        """What to tell the client in the end; None if there is nobody to tell, or nothing known."""
        try:
            await worker.send(self._payload, self._fds)
        except OSError:
            return frames.reply(frames.DECLINED, 1)  # killed before it had begun
        while True:
            message = await worker.receive()
            if message is None:
                await worker.ended.wait()
                if worker.status is None:
                    return None
                if worker.status.signal is not None:
                    return frames.reply(frames.SIGNALED, worker.status.signal)
                return frames.reply(frames.EXITED, worker.status.exit_code or 0)
            if isinstance(message, Code):
                return frames.reply(frames.EXITED, message.code & 0xFF)
            if isinstance(message, Decline):
                return frames.reply(frames.DECLINED, 1)
            if isinstance(message, Launch | Signal):
                if self._loan is None:
                    self._loan = Loan(self._house, worker, tasks)
                self._loan.take(message)
            elif isinstance(message, Start):
                await self._answer(worker, await self._house.start(message.request))
            else:
                return await self._take_over(message)

    async def _answer(self, worker: Worker, answer: Answer) -> None:
        try:
            await worker.send(msgspec.msgpack.encode(answer))
        except OSError:
            return  # killed meanwhile; the container runs, as it would

    async def _take_over(self, message: HandOver) -> bytes | None:
        if self._gone:
            return None
        self._peer = Peer(self._hello, tuple(self._fds[:3]))
        # A worker that has got so far has acted on none of the signals that it was sent.
        for number in self._sent:
            self._peer.deliver(number)
        return frames.reply(
            frames.EXITED, await self._house.run(message.request, self._peer) & 0xFF
        )

    async def _listen(self) -> None:
        """Pass signals on, until the client is gone or says what no client would."""
        try:
            while (payload := await self._incoming.receive(frames.MAX_SIGNAL_BYTES)) is not None:
                number = decode_signal(payload)
                if number not in _PASSED_ON or self._incoming.fds:
                    break
                self._deliver(number)
        except BrokenClientError:
            pass  # the same
        self._gone = True
        if self._peer is not None:
            self._peer.gone.set()
        elif self._worker is not None:
            self._worker.send_signal(signal.SIGKILL)  # without a server, it is what was killed

    def _deliver(self, number: int) -> None:
        assert self._worker is not None
        if self._peer is not None:
            if number == signal.SIGTSTP:
                self._reply(frames.reply(frames.SUSPENDED))
            elif number != signal.SIGCONT:
                self._peer.deliver(number)
        elif number == signal.SIGTSTP:
            # The one that stops in any case: a worker has no terminal that could make it go on.
            self._worker.send_signal(signal.SIGSTOP)
            self._reply(frames.reply(frames.SUSPENDED))
        else:
            self._worker.send_signal(number)
            if number != signal.SIGCONT and len(self._sent) < _PENDING_SIGNALS:
                self._sent.append(number)

    def _reply(self, data: bytes) -> bool:
        """Whether that was possible; if not, it is gone, or reads nothing of what we write."""
        try:
            self._socket.send(data, socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True
