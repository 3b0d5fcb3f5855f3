"""The supervisor's end of the keeper's socket: requests out, news in."""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
from contextlib import suppress
from typing import Any

import trio

from craterun.core import opcodes as op
from craterun.core.errors import KeeperDiedError, UnsupportedHostError
from craterun.core.launchplan import FilledPlan, LaunchPlan
from craterun.core.phases import Started
from craterun.core.steps import Values
from craterun.keeper import wire
from craterun.keeper.spawn import spawn_keeper
from craterun.linux.fd import Fd
from craterun.linux.shortage import killed
from craterun.supervisor.launched import DIED, Failure, Launched

logger = logging.getLogger("craterun")

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS)
_FATE_SECONDS = 1.0
_HAS_PIDFD_TO_JOIN = 1
_HAS_LOCK = 2
_LIVES_ON = 4
_MOST_RELEASED = 1000
"""In one message, so that it always is a small one (`wire`)."""


class KeeperLink:
    """Owns the keeper's process and socket. `serve` runs as long as the supervisor does.

    :ivar dead: the keeper is gone
    :ivar fate: and what killed it, if something did
    :ivar can_launch: it is of this version, so that it understands plans
    """

    def __init__(self, process: subprocess.Popen[bytes] | None, sock: socket.socket) -> None:
        """Takes ownership of both. ``process`` is None if the keeper is our parent."""
        sock.setblocking(False)
        self._process = process
        self._socket = sock
        self._sending = trio.Lock()
        self._buffer = bytearray(wire.INLINE_BYTES + 1)
        self._launched: dict[int, Launched] = {}
        self._next = 0
        self._unreleased: list[int] = []
        self._adopted: list[Launched] = []
        self._adoption = trio.Event()
        self.dead = False
        self._died = trio.Event()
        self.fate = ""
        self.can_launch = True
        self._native = os.environ.get(op.SWITCH) != "0"
        self._sent: set[int] = set()

    @classmethod
    def spawn(cls) -> KeeperLink:
        """Start a keeper of our own."""
        return cls(*spawn_keeper())

    @property
    def pid(self) -> int:
        """The keeper's."""
        return os.getppid() if self._process is None else self._process.pid

    # --- requests -------------------------------------------------------------------------------

    async def launch(
        self,
        plan: LaunchPlan | FilledPlan,
        *,
        cookie: bytes = b"",
        join: int = -1,
        lock: int = -1,
        replacing: Launched | None = None,
        group: str = "",
        lives_on: bool = False,
        native: bool = True,
    ) -> Launched:
        """Have ``plan`` carried out; returns when the request is sent. Borrows the descriptors.

        :param cookie: what a successor of this supervisor needs to find the container's state;
            empty if the process is to be killed when this supervisor dies
        :param join: pidfd of the container to join
        :param lock: locked state directory, which the keeper keeps locked
        :param replacing: what the keeper may forget in the same moment
        :param group: a cgroup of the process's own, for the keeper to kill all of it and to remove
            it when this supervisor has died
        :param lives_on: without a ``cookie``: do not kill it when this supervisor dies
        :raises KeeperDiedError: the keeper is gone
        :raises UnsupportedHostError: the keeper is of another version than this process
        :raises OSError: this process has no descriptor or memory left for the request
        :param native: by machine code, where that is possible
        """
        if replacing is not None:
            self._retire(replacing)
        if not self.can_launch:
            raise UnsupportedHostError(
                "craterun has been replaced by another version while it ran; start it anew"
            )
        native = native and self._native
        values, cgroup = None, plan.cgroup
        if isinstance(plan, FilledPlan):
            if native and plan.like.is_native:
                values, plan = plan.values, plan.like
            else:
                plan = plan.whole()
        launched = Launched(self._next, terminal=plan.terminal, merged=plan.merged)
        self._next += 1
        self._launched[launched.number] = launched
        fds = [fd for fd in (join, lock) if fd >= 0]
        flags = (_HAS_PIDFD_TO_JOIN if join >= 0 else 0) | (_HAS_LOCK if lock >= 0 else 0)
        flags |= _LIVES_ON if lives_on else 0
        program = self._program(plan, values, native=native)
        streams = (plan.stdin, plan.owner, plan.terminal, plan.merged, plan.blank)
        body = (*program, plan.clone_flags, cgroup, *streams)
        released = self._take_unreleased()
        try:
            head = (op.MSG_LAUNCH, launched.number, flags, cookie, body, released)
            await self._send((*head, os.fsencode(group)), fds)
        except BaseException:
            # Unsent, or the keeper is gone: there will be no news of it.
            self._launched.pop(launched.number, None)
            self._unreleased += released
            raise
        return launched

    def _program(
        self, plan: LaunchPlan, values: Values | None, *, native: bool
    ) -> tuple[list[Any], list[Any] | None]:
        """(parts, values) for machine code; (parts, None) for Python.

        :param values: default: those of the plan's steps
        """
        if not (native and (values is not None or plan.is_native)):
            return [part.code for part in plan.parts], None
        sent = self._sent
        parts: list[Any] = []
        own: list[Any] = []
        for part in plan.parts:
            template = part.template
            number = template.number
            parts.append((number, None if number in sent else template.native))
            if values is None and template.values:
                own += part.own()
            sent.add(number)
        return parts, own if values is None else list(values)

    async def start(
        self,
        plan: LaunchPlan | FilledPlan,
        cookie: bytes,
        lock: int,
        replacing: Launched | None = None,
    ) -> Launched:
        """`launch`, and wait until the command was executed or it is known why it was not."""
        launched = await self.launch(plan, cookie=cookie, lock=lock, replacing=replacing)
        await launched.settled.wait()
        failure = launched.failure
        if failure is not None and failure.call == op.NATIVE_FAILED:
            logger.debug("%s: native launch: %s, errno %d", cookie, failure.evidence, failure.errno)
            self._native = self._native and failure.evidence != op.NEVER
            self._sent.clear()  # the keeper may have forgotten some
            launched = await self.launch(plan, cookie=cookie, lock=lock, native=False)
            await launched.settled.wait()
        return launched

    async def release(self, launched: Launched) -> None:
        """All of this process's life is on record: the keeper may forget it."""
        self._retire(launched)
        # Ends that were recorded on one trip of the clerk travel in one message, or along with a
        # launch: each message is a wake-up of the keeper.
        await trio.lowlevel.cancel_shielded_checkpoint()
        while self._unreleased and not self.dead:
            released = self._take_unreleased()
            try:
                await self._send((op.MSG_RELEASE, released), [])
            except KeeperDiedError:
                return  # then there is nothing left to release

    def _take_unreleased(self) -> list[int]:
        released = self._unreleased[:_MOST_RELEASED]
        del self._unreleased[:_MOST_RELEASED]
        return released

    async def drop(self, launched: Launched) -> None:
        """Have a process killed and forgotten: there is no way to look after it."""
        number = launched.number
        if self._launched.pop(number, None) is None:
            return
        launched.close()
        try:
            await self._send((op.MSG_DROP, number), [])
        except KeeperDiedError:
            return  # and it with the keeper

    def _retire(self, launched: Launched) -> None:
        self._launched.pop(launched.number, None)
        launched.close()
        self._unreleased.append(launched.number)

    async def adopt(self) -> list[Launched]:
        """Everything that the keeper kept of an earlier supervisor."""
        await self._send((op.MSG_ADOPT,), [])
        await self._adoption.wait()
        return self._adopted

    async def _send(self, message: tuple[Any, ...], fds: list[int]) -> None:
        data, memfd = wire.encode(message)
        holder = Fd(memfd)
        try:
            ancillary = wire.ancillary([*fds, memfd] if memfd >= 0 else fds)
            # At once, if nobody is before us: to take a lock is a trip around the event loop.
            if not self._sending.locked() and self._sends(data, ancillary):
                return
            async with self._sending:
                while not self._sends(data, ancillary):
                    await trio.lowlevel.wait_writable(self._socket.fileno())
        except (ConnectionError, trio.ClosedResourceError, OSError) as error:
            # Of the descriptors of a launch; others have none.
            if message[0] == op.MSG_LAUNCH and getattr(error, "errno", 0) in _NO_ROOM:
                raise
            raise self.death() from error
        finally:
            holder.close()

    def _sends(self, data: bytes, ancillary: list[tuple[int, int, bytes]]) -> bool:
        """Whether the socket takes it."""
        try:
            self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        return True

    # --- news -----------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Receive until cancelled, or until the keeper dies; then wake everyone who waits."""
        try:
            # What is to be sent here must not keep us from receiving: the keeper may be waiting for
            # just that before it receives anything itself.
            async with trio.open_nursery() as answers:
                with suppress(ConnectionError, wire.BrokenPeerError):
                    await self._receive_all(answers)
                # At its end, or broken, which is the same.
                answers.cancel_scope.cancel()
        finally:
            self.dead = True
            self._died.set()
            self._adoption.set()
            for launched in self._launched.values():
                if not launched.settled.is_set():
                    launched.failure = Failure(-1, 0, DIED)
                    launched.settled.set()
                launched.exited.set()

    async def _receive_all(self, answers: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._socket.fileno())
            try:
                received = wire.receive(self._socket, self._buffer)
            except BlockingIOError:
                continue
            except wire.DescriptorsLostError as lost:
                self._refuse(answers, *lost.message)
                continue
            if received is None:
                await self._learn_fate()
                break
            self._dispatch(*received)

    async def _learn_fate(self) -> None:
        """How the keeper, which has closed its socket, has ended."""
        if self._process is None:
            return
        with suppress(OSError), trio.move_on_after(_FATE_SECONDS):
            pidfd = Fd(os.pidfd_open(self._process.pid))
            try:
                await trio.lowlevel.wait_readable(pidfd.fileno())
            finally:
                pidfd.close()
            code = self._process.poll()
            self.fate = killed(-code) if code is not None and code < 0 else ""

    async def wait_death(self) -> KeeperDiedError:
        """Until the keeper is gone; what there is to say then."""
        await self._died.wait()
        return self.death()

    def death(self) -> KeeperDiedError:
        """What there is to say once the keeper is gone."""
        why = f": {self.fate}" if self.fate else ""
        return KeeperDiedError(f"the keeper process has died, and its containers with it{why}")

    def _refuse(self, answers: trio.Nursery, kind: int, number: int, *_: Any) -> None:
        """News of a process that there was no room for: it goes, the others stay."""
        launched = self._launched.get(number)
        if kind == op.MSG_ADOPTED:
            logger.error("a container cannot be taken over, and is killed: too many open files")
            launched = self._launched[number] = Launched(number)
            self._next = max(self._next, number + 1)
        if launched is not None:
            answers.start_soon(self.drop, launched)
            launched.failure = Failure(-1, errno.EMFILE, b"crecvmsg", here=True)
            launched.settled.set()
            launched.exited.set()

    def _dispatch(self, message: tuple[Any, ...], numbers: list[int]) -> None:
        kind, number, *rest = message
        fds = [Fd(n) for n in numbers]
        if kind == op.MSG_ADOPTED:
            self._dispatch_adopted(number, rest, fds)
            return
        launched = self._launched.get(number)
        if launched is None:
            for fd in fds:
                fd.close()
            return
        if kind == op.MSG_STARTED:
            launched.pid, launched.start_time, *times = rest
            launched.started = Started(*times)
            for fd in (launched.pidfd, launched.stdout, launched.stderr):
                fd.close()  # one adopted while it was still starting has them already
            # Without any stream: it was killed on its way to execve.
            names = ["pidfd", "stdout", "stderr", "stdin"]
            if launched.merged:
                names.remove("stderr")
            for name, fd in zip(names, fds, strict=False):
                setattr(launched, name, fd)
            launched.settled.set()
        elif kind == op.MSG_EXITED:
            launched.reaped(*rest)
        elif kind == op.MSG_FAILED:
            del self._launched[number]  # as the keeper has done
            launched.failure = Failure(*rest)
            launched.settled.set()
            launched.exited.set()

    def _dispatch_adopted(self, number: int, rest: list[Any], fds: list[Fd]) -> None:
        if number < 0:
            self._adoption.set()
            return
        launched = Launched(number)
        launched.pid, launched.start_time, launched.cookie, started, status, has_lock = rest
        launched.pidfd = fds.pop(0)
        if has_lock:
            launched.lock = fds.pop(0)
        launched.terminal = bool(fds) and os.isatty(fds[0].fileno())
        for name, fd in zip(("stdout", "stderr"), fds, strict=False):
            setattr(launched, name, fd)
        if started:
            launched.settled.set()
        if status is not None:
            launched.reaped(*status)
        self._next = max(self._next, number + 1)
        self._launched[number] = launched
        self._adopted.append(launched)

    # --- end --------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Let the keeper go, and reap it if it is our child."""
        self._socket.close()
        if self._process is not None and self._process.returncode is None:
            await _reap(self._process)


async def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        pidfd = Fd(os.pidfd_open(process.pid))
    except ProcessLookupError:
        process.wait()  # reaped by the kernel, for a program that ignores SIGCHLD
        return
    try:
        with trio.CancelScope(shield=True):
            await trio.lowlevel.wait_readable(pidfd.fileno())
        process.wait()
    finally:
        pidfd.close()
