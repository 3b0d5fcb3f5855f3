"""One supervisor for everybody who asks at the socket, until it is told to end."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import msgspec
import trio

from craterun.core.errors import KeeperDiedError
from craterun.core.spec import Spec
from craterun.linux import calls
from craterun.linux.fd import is_plentiful
from craterun.linux.shortage import require_room
from craterun.serve import frames
from craterun.serve.attendance import Attendance, Peer
from craterun.serve.hello import (
    HELLO_SECONDS,
    BrokenClientError,
    Budget,
    Hello,
    Incoming,
    close_all,
    decode_hello,
)
from craterun.serve.jobs import Answer
from craterun.serve.listener import Listener
from craterun.serve.started import Change, Started
from craterun.serve.workers import Workers
from craterun.supervisor.container import Container
from craterun.supervisor.execution import Execution
from craterun.supervisor.main import Supervisor

if TYPE_CHECKING:
    from craterun.core.execspec import ExecSpec

logger = logging.getLogger("craterun")

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_UNFINISHED_BYTES = 64 * 1024 * 1024
_FDS_PER_CLIENT = 16
"""Connection, streams, directory, worker, and what a container takes; generously."""
_FDS_TO_COME = 6
"""Of a client that has just been let in: streams, directory, and the two of a worker."""
_MAX_CLIENTS = 4096
_GOODBYE_SECONDS = 5.0
"""How long, at the end, a reader may take for the last output of a container that was stopped, a
command to start what it was about to, and any other command to end."""
_STARTING = ([b"run"], [b"exec"])
"""How commands begin that may have us start something."""
_SHORTAGE_SECONDS = 0.1
_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class Sessions(Protocol):
    """What containers are started with, as the command line has it."""

    async def start(self, house: Server, request: bytes) -> Answer:
        """Start a container in the background."""

    async def run(self, house: Server, request: bytes, peer: Peer) -> int:
        """Run a container in the foreground of ``peer``; the exit code."""


class Ours(msgspec.Struct, frozen=True):
    """What a client must have in common with the server.

    :ivar program: see `Hello`
    :ivar real_root: the state directory
    :ivar essence: see `Circumstances`
    """

    program: bytes
    real_root: bytes
    essence: tuple[bytes, ...]


class Server:
    """Lets clients in and sees them off. `serve` runs until it is told to end.

    :ivar supervisor: of all containers
    :ivar workers: who run commands
    """

    def __init__(
        self,
        listener: Listener,
        workers: Workers,
        supervisor: Supervisor,
        sessions: Sessions,
        ours: Ours,
        *,
        idle_seconds: float | None = None,
    ) -> None:
        """Everything is borrowed, and must be open.

        :param idle_seconds: end when for so long nobody was there and nothing ran
        """
        self.workers = workers
        self.supervisor = supervisor
        self._listener = listener
        self._sessions = sessions
        self._ours = ours
        self._idle_seconds = idle_seconds
        self._budget = Budget(_UNFINISHED_BYTES)
        self._clients = 0
        self._greeting = 0
        self._attendances: set[Attendance] = set()
        self._starters: set[Attendance] = set()
        self._enders: list[int] = []
        self._impatient = False
        self._change = Change()
        self._started = Started(supervisor, self._change)
        self._ending = trio.Event()
        self._leave = False
        self._death: KeeperDiedError | None = None
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self._max_clients = min(_MAX_CLIENTS, max(16, hard // _FDS_PER_CLIENT))

    def end(self, *, leave: bool = False) -> None:
        """Let no one in any more, and have `serve` return.

        :param leave: the containers are to go on, looked after by a successor
        """
        if not self._ending.is_set():
            self._leave = leave
            self._ending.set()

    def kill(self) -> None:
        """For when somebody does not want to wait for containers and commands to end."""
        self._started.kill()
        self._change.note()

    async def serve(self) -> bool:
        """Until `end`, or until it was idle for long enough.

        Returns whether containers are left running; otherwise they were stopped.

        :raises KeeperDiedError: that was the end, of the containers, too
        """
        try:
            return await self._serve()
        finally:
            self._started.close()

    async def _serve(self) -> bool:
        async with trio.open_nursery() as tasks:
            tasks.start_soon(self.workers.serve)
            self.workers.refill()
            self._tasks = tasks
            accepting, accepted = trio.CancelScope(), trio.Event()
            tasks.start_soon(self._accept_within, accepting, accepted)
            tasks.start_soon(self._end_without_keeper)
            if self._idle_seconds is not None:
                tasks.start_soon(self._end_when_idle, self._idle_seconds)
            await self._ending.wait()
            if not self._listener.is_passed:  # which stays open, so that who comes has to be told
                accepting.cancel()
                await accepted.wait()  # it may be about to let somebody in
                self._listener.close()
            tasks.start_soon(self._lose_patience)
            if self._leave:
                await self._leave_containers()
            else:
                await self._stop_containers()
            with trio.move_on_after(_GOODBYE_SECONDS):
                while self._has_guests():
                    await self._change.wait()
            tasks.cancel_scope.cancel()
        self._announce_end()
        if self._death is not None:
            raise self._death
        return self._leave

    async def _end_without_keeper(self) -> None:
        """It has taken the containers along, and nothing more can be started."""
        self._death = await self.supervisor.wait_keeper_death()
        self.end()

    def _announce_end(self) -> None:
        """To those who have asked for it, and wait until there is nothing left of this process."""
        self._listener.release()
        for number in self._enders:
            with suppress(OSError):  # it has not waited
                os.write(number, frames.reply(frames.EXITED))

    # --- clients ----------------------------------------------------------------------------------

    async def _accept_within(self, scope: trio.CancelScope, ended: trio.Event) -> None:
        try:
            with scope:
                await self._accept()
        finally:
            ended.set()

    async def _accept(self) -> None:
        sock = self._listener.socket
        while True:
            await trio.lowlevel.wait_readable(sock.fileno())
            try:
                client, _ = sock.accept()
            except (BlockingIOError, ConnectionError):
                continue
            except OSError as error:
                if error.errno not in _SHORTAGE:
                    raise
                # Who waits goes on waiting, and so the socket stays readable: not at once.
                await trio.sleep(_SHORTAGE_SECONDS)
                continue
            uid = _credentials_of(client)[1]
            if uid != os.geteuid() or not self._may_speak(client.fileno()):
                client.close()  # it goes on without us
                continue
            has_room = self._has_room(client.fileno())
            client.setblocking(False)
            self._clients += 1
            self._change.note()
            self._tasks.start_soon(self._attend, client, has_room)

    def _has_room(self, number: int) -> bool:
        """Whether one more client leaves those descriptors alone that containers need.

        :param number: of the last one that was opened for it
        """
        try:
            require_room(number, _FDS_TO_COME * (self._greeting + 1))
        except OSError:
            return False
        return self._clients < self._max_clients

    def _may_speak(self, number: int) -> bool:
        """Whether one more client may say what it wants. If there is no room for a client, it is to
        be declined, unless it wants our end: that must not be for want of room.
        """
        return is_plentiful(number + _FDS_TO_COME * (self._greeting + 1))

    async def _attend(self, sock: socket.socket, has_room: bool) -> None:
        incoming = Incoming(sock)
        try:
            await self._serve_client(sock, incoming, has_room=has_room)
        except (BrokenClientError, trio.TooSlowError):
            pass  # no client of ours, or one that has died
        except Exception:
            logger.exception("a client could not be served")
        finally:
            incoming.close()
            sock.close()
            self._clients -= 1
            self._change.note()

    async def _serve_client(
        self, sock: socket.socket, incoming: Incoming, *, has_room: bool
    ) -> None:
        self._greeting += 1
        try:
            with trio.fail_after(HELLO_SECONDS):
                payload = await incoming.receive(frames.MAX_HELLO_BYTES, self._budget)
        finally:
            self._greeting -= 1
        if payload is None:
            return
        hello = decode_hello(payload)
        fds = incoming.take_fds()
        if hello.version == frames.VERSION and hello.arguments[:1] == [frames.SHUTDOWN.encode()]:
            close_all(fds)
            with suppress(OSError):  # it has gone; its will is known
                sock.send(frames.reply(frames.ACCEPTED), socket.MSG_NOSIGNAL)
            self.end(leave=frames.LEAVE_RUNNING.encode() in hello.arguments)
            self._enders.append(sock.detach())  # closed by the kernel, with all of us
        elif (
            not has_room or len(fds) != frames.HELLO_DESCRIPTORS or not self._is_for_us(hello, sock)
        ):
            close_all(fds)
            with suppress(OSError):  # it has not waited for that
                sock.send(frames.reply(frames.DECLINED), socket.MSG_NOSIGNAL)
        else:
            attendance = Attendance(self, sock, incoming, hello, payload, fds)
            self._attendances.add(attendance)
            if hello.arguments[:1] in _STARTING:
                self._starters.add(attendance)
            try:
                await attendance.run()
            finally:
                self._attendances.remove(attendance)
                self._starters.discard(attendance)

    def _is_for_us(self, hello: Hello, sock: socket.socket) -> bool:
        """Whether a container that we start is the same as one that the client starts."""
        return (
            not self._ending.is_set()
            and not self.supervisor.keeper_died
            and hello.version == frames.VERSION
            and hello.program == self._ours.program
            and hello.real_root == self._ours.real_root
            and hello.circumstances.essence() == self._ours.essence
            and _has_our_io_priority(_credentials_of(sock)[0])
        )

    # --- containers -------------------------------------------------------------------------------

    async def start(self, request: bytes) -> Answer:
        """Start a container in the background."""
        return await self._sessions.start(self, request)

    async def run(self, request: bytes, peer: Peer) -> int:
        """Run a container in the foreground of ``peer``; the exit code."""
        self._change.note()  # its attendance is attached now
        return await self._sessions.run(self, request, peer)

    @property
    def leaves_containers(self) -> bool:
        """Whether they go on after its end."""
        return self._leave

    @property
    def is_ending(self) -> bool:
        """Whether nobody is let in any more."""
        return self._ending.is_set()

    async def begin(
        self, spec: Spec, *, container_id: str | None = None, look_again: bool = True
    ) -> Container:
        """Start a container for a session; it is stopped at the end of the server.

        :param look_again: the host and root directories may have changed
        :raises CraterunError: whatever `Supervisor.start` raises
        """
        return await self._started.begin(
            self._tasks, spec, container_id=container_id, look_again=look_again
        )

    async def execute(self, container: str, spec: ExecSpec) -> Execution:
        """Run a command in a container for a session; it is ended at the end of the server.

        :param container: id, prefix or name
        :raises CraterunError: whatever `Supervisor.execute` raises
        """
        return await self._started.execute(self._tasks, container, spec)

    def _is_starting(self) -> bool:
        """Whether there may be another container in a moment, of a client who was let in before
        the end: it has been told that we do its work, and cannot tell what we have done of it.
        """
        if self._started.beginning:
            return True
        starting = (one for one in self._starters if not one.is_attached)
        return not self._impatient and any(starting)

    async def _lose_patience(self) -> None:
        """With commands that do not get as far as to start something."""
        await trio.sleep(_GOODBYE_SECONDS)
        self._impatient = True
        self._change.note()

    async def _leave_containers(self) -> None:
        """A successor finds each of them on record."""
        recorded = set[str]()
        while await self._started.record(recorded) or self._is_starting():
            if self._is_starting():
                await self._change.wait()

    async def _stop_containers(self) -> None:
        """As ``craterun stop`` does."""
        if self._death is None:  # else there is something else to be told, of each container
            for attendance in self._attendances:
                attendance.announce_end()
        asked = set[object]()
        while self._started or self._is_starting():
            await self._started.stop(asked, self._tasks)  # and those that come later, next time

    def _has_guests(self) -> bool:
        """Whether there are commands that may be about to end: those of containers that were
        stopped, and all that have nothing to do with ours. Of containers that are left, not.
        """
        return any(
            not self._leave if guest.is_attached else not self._started.killing
            for guest in self._attendances
        )

    # --- idleness ---------------------------------------------------------------------------------

    async def _end_when_idle(self, seconds: float) -> None:
        while True:
            while self._clients or self._started:
                await self._change.wait()
            with trio.move_on_after(seconds) as patience:
                await self._change.wait()
            if patience.cancelled_caught and not self._clients and not self._started:
                self.end()
                return


def _credentials_of(sock: socket.socket) -> tuple[int, int, int]:
    """Pid, uid and gid of who has connected."""
    size = _CREDENTIALS.size
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, gid = _CREDENTIALS.unpack(packed)
    return pid, uid, gid


def _has_our_io_priority(pid: int) -> bool:
    """The one thing that a container inherits and that no file in /proc tells: the client, which
    imports nothing, has no way to find out.
    """
    try:
        return calls.io_priority(pid) == calls.io_priority(0)
    except OSError as error:
        return error.errno == errno.ENOSYS  # or it has died
