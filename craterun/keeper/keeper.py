"""The keeper: launches, parents and reaps containers, and outlives the supervisor.

One thread, one epoll, no asyncio, almost no imports: a small process forks fast, and one with too
little code to crash can hold what must not be lost. For every container it holds the pidfd, the
read ends of the output pipes (so that a container never sees its output closed) and the exit
status, until the supervisor says that all is safely on disk. When the supervisor dies, the keeper
starts another one, which takes over what is there.
"""

from __future__ import annotations

import _signal
import _socket
import os
import select
import sys
import time

from craterun.core import opcodes as op
from craterun.keeper import wire
from craterun.keeper.child import evidence_of, stamps
from craterun.keeper.kept import (
    EMFILE,
    Kept,
    receive_descriptor,
    socket_pair,
    start_time,
)
from craterun.keeper.launcher import Launcher
from craterun.keeper.native import UnavailableError

TYPE_CHECKING = False  # typing is an import that the keeper does without
if TYPE_CHECKING:
    from typing import Any

_MAX_TAKEOVERS = 5
_TAKEOVER_SECONDS = 10.0
"""Supervisors that die faster than this many in this time are not replaced any more."""
_SUCCESSOR_SECONDS = 0.5
"""A successor that cannot be started, for want of processes or memory, is tried again so often."""


class Keeper:
    """The keeper's whole state and its loop."""

    def __init__(self, sock: Any, takeover: list[str]) -> None:
        self.launcher = Launcher()
        self.sock = sock
        self.woken = 0
        self.takeover = takeover
        self.takeovers: list[float] = []
        self.successor = 0
        self.helpers: list[int] = []
        self.successor_due = False
        self.buffer = bytearray(wire.INLINE_BYTES + 1)
        self.kept: dict[int, Kept] = {}
        self.by_fd: dict[int, Kept] = {}
        self.epoll = select.epoll()
        self.epoll.register(sock.fileno(), select.EPOLLIN)

    def run(self) -> None:
        """Serve until the supervisor is gone and nothing is left to keep."""
        while self.sock is not None or self.kept:
            events = self.epoll.poll(_SUCCESSOR_SECONDS if self.successor_due else None)
            self.woken = time.monotonic_ns()
            if self.successor_due:
                self.start_successor()
            for fd, _ in events:
                if (kept := self.by_fd.get(fd)) is None:
                    if self.sock is not None and fd == self.sock.fileno():
                        self.serve()
                elif fd == kept.error:
                    self.read_error_pipe(kept)
                else:
                    self.reap(kept)
        for pid in self.helpers:
            os.waitpid(pid, 0)

    # --- the supervisor's requests ------------------------------------------------------------

    def serve(self) -> None:
        """One request, or the end of the supervisor."""
        try:
            received = wire.receive(self.sock, self.buffer)
            if received is None:
                self.supervisor_died()
                return
            message, fds = received
            if message[0] == op.MSG_LAUNCH:
                self.launch(fds, *message[1:])
            elif message[0] == op.MSG_RELEASE:
                self.release_all(message[1])
            elif message[0] == op.MSG_ADOPT:
                self.hand_over()
            elif message[0] == op.MSG_DROP:
                self.abandon(self.kept[message[1]])
            else:
                self.supervisor_died()
        except wire.DescriptorsLostError as lost:
            self.refuse(*lost.message)
        except (wire.BrokenPeerError, ConnectionError, TypeError, ValueError, LookupError):
            # Gone, or not our supervisor's messages: the same to us.
            self.supervisor_died()

    def refuse(self, kind: int, number: int, *others: Any) -> None:
        """A request whose descriptors there was no room for: of a launch, there is nothing yet."""
        if kind == op.MSG_LAUNCH:
            self.release_all(others[3])
            self.send((op.MSG_FAILED, number, op.CLONE_FAILED, EMFILE, b"crecvmsg"), [])

    def send(self, message: tuple[Any, ...], fds: list[int]) -> int:
        """Send; a supervisor that is gone is noticed by `serve`, so failing here is no news.

        Returns 0, or why the kernel cannot carry so much: ETOOMANYREFS, ENOBUFS.
        """
        if self.sock is None:
            return 0
        data, memfd = wire.encode(message)
        try:
            everything = [*fds, memfd] if memfd >= 0 else fds
            self.sock.sendmsg([data], wire.ancillary(everything), _socket.MSG_NOSIGNAL)
        except ConnectionError:
            pass
        except OSError as error:
            return error.errno or 0
        finally:
            if memfd >= 0:
                os.close(memfd)
        return 0

    def launch(
        self,
        fds: list[int],
        number: int,
        flags: int,
        cookie: bytes,
        plan: Any,
        released: list[int],
        group: bytes = b"",
    ) -> None:
        """Clone a child that carries out ``plan``; let go of what was ``released`` since.

        ``fds``: the pidfd of the container to join, if ``flags`` says so (1), then the locked
        state directory, if ``flags`` says so (2).
        """
        self.release_all(released)
        join = fds.pop(0) if flags & 1 else -1
        kept = Kept(number, cookie, fds.pop(0) if flags & 2 else -1)
        kept.group, kept.lives_on = group, bool(flags & 4)
        self.kept[number] = kept
        try:
            self.launcher.start(kept, plan, join, self.kept.values())
            self.watch(kept.error, kept)
            self.watch(kept.pidfd, kept)
        except UnavailableError as error:
            self.send((op.MSG_FAILED, number, op.NATIVE_FAILED, 0, error.args[0]), [])
            self.release(number)
            return
        except OSError as error:
            if kept.pidfd >= 0:  # a child that cannot be kept
                _signal.pidfd_send_signal(kept.pidfd, _signal.SIGKILL)
                os.waitid(os.P_PIDFD, kept.pidfd, os.WEXITED)
                kept.status = (0, 0, 0, 0)  # nobody reads its slot any more
            why = (error.errno or 0, evidence_of(error))
            self.send((op.MSG_FAILED, number, op.CLONE_FAILED, *why), [])
            self.release(number)
            return
        except (TypeError, ValueError, LookupError):
            self.release(number)  # nonsense, which `serve` is about to see
            raise
        finally:
            if join >= 0:
                os.close(join)

    def watch(self, fd: int, kept: Kept) -> None:
        """Have `run` call for ``kept`` when ``fd`` is readable."""
        self.epoll.register(fd, select.EPOLLIN)
        self.by_fd[fd] = kept

    def unwatch(self, fd: int) -> None:
        """Forget and close ``fd``.

        Closing alone would not end the watch: the supervisor, or a child that has not executed its
        command yet, may hold a duplicate, and epoll watches what is behind the number (epoll(7)).
        """
        if self.by_fd.pop(fd, None) is not None:
            self.epoll.unregister(fd)
        os.close(fd)

    def release_all(self, numbers: list[int]) -> None:
        """Let go of all these."""
        for number in numbers:
            self.release(number)

    def release(self, number: int) -> None:
        """Everything about this process is recorded elsewhere: let go of it."""
        kept = self.kept.pop(number, None)
        if kept is None:
            return
        kept.take_back()
        if kept.error >= 0:
            self.unwatch(kept.error)
        if kept.pidfd >= 0:
            self.unwatch(kept.pidfd)
        if kept.slot >= 0 and kept.status is not None:
            self.launcher.free(kept.slot)
        for fd in (*kept.pipes, kept.lock):
            if fd >= 0:
                os.close(fd)
        if kept.terminal is not None:
            kept.terminal.close()

    # --- news from children -------------------------------------------------------------------

    def read_error_pipe(self, kept: Kept) -> None:
        """Read what is there; at end-of-file the child has executed its command, or failed."""
        while True:
            try:
                data = os.read(kept.error, 4096)
            except BlockingIOError:
                return
            if not data:
                break
            if data[0] == op.RECORD_TABLE and not kept.buffer:
                kept.take_back()
                continue
            kept.buffer += data
            if kept.buffer[0] == op.RECORD_PID and len(kept.buffer) >= 5:
                self.follow(kept, int.from_bytes(kept.buffer[1:5], "little"))
                kept.buffer = kept.buffer[5:]
        self.unwatch(kept.error)
        kept.error = -1
        executing = stamps.of(kept.number)
        if kept.slot >= 0 and self.launcher.native is not None:
            executing, kept.failure = self.launcher.native.finish(kept.slot)
            kept.slot = -1
        if kept.failure is not None:
            self.finish(kept)
        elif kept.buffer:
            record = kept.buffer
            step, errno = record[1] | record[2] << 8, record[3] | record[4] << 8
            kept.failure = (step, errno, record[5:])
            self.finish(kept)
        else:
            kept.started = True
            kept.times = (*kept.times[:2], executing, self.woken)
            refused = 0
            if kept.terminal is not None:
                # Sent before execve, hence there. A child that was killed on the way sent nothing.
                try:
                    kept.pipes = receive_descriptor(kept.terminal)
                except OSError as error:
                    refused = error.errno or 0
                kept.terminal.close()
                kept.terminal = None
            fds = [kept.pidfd, *kept.pipes]
            told = (op.MSG_STARTED, kept.number, kept.pid, kept.start_time, *kept.times)
            refused = refused or self.send(told, fds)
            if refused:  # nobody could see what it says: its end is told as a failure
                kept.failure = (op.CLONE_FAILED, refused, b"crecvmsg")
                _signal.pidfd_send_signal(kept.pidfd, _signal.SIGKILL)
            # Output pipes are held for a successor. The input pipe must not be: the container sees
            # its end when the last writer closes it, and that is the supervisor's decision.
            for fd in kept.pipes[kept.outputs :]:
                os.close(fd)
            del kept.pipes[kept.outputs :]
            if kept.status is not None:
                # Reaped before: a child that began with our table had the other end of this pipe.
                kept.status = (*kept.status[:2], kept.times[3], kept.status[3])
                self.finish(kept)

    def follow(self, kept: Kept, pid: int) -> None:
        """The child forked inside the joined namespaces and ends; from now on ``pid`` counts."""
        os.waitpid(kept.pid, 0)
        self.unwatch(kept.pidfd)
        kept.pid = pid
        # In this order: there may be room for one descriptor, the one that was just closed.
        kept.start_time = start_time(pid)
        kept.pidfd = os.pidfd_open(pid)
        self.watch(kept.pidfd, kept)

    def reap(self, kept: Kept) -> None:
        """The process has ended: take its status."""
        if kept.error >= 0:
            # Both can be ready at once, and what the pipe says comes first: that the command was
            # executed at all, or that another process is the one to watch.
            pidfd = kept.pidfd
            kept.take_back()
            self.read_error_pipe(kept)
            if kept.pidfd != pidfd or kept.number not in self.kept:
                return
        result = os.waitid(os.P_PIDFD, kept.pidfd, os.WEXITED | os.WNOHANG)
        if result is None:
            return
        kept.status = (result.si_code, result.si_status, kept.times[3], self.woken)
        del self.by_fd[kept.pidfd]
        self.epoll.unregister(kept.pidfd)
        self.finish(kept)

    def finish(self, kept: Kept) -> None:
        """Tell how it ended, once both the pipe and the process have said all."""
        if kept.status is None or kept.error >= 0:
            return
        if kept.abandoned:
            if kept.lives_on:
                self.empty(kept.group, "dissolve")
            self.release(kept.number)
        elif kept.failure is not None:
            self.send((op.MSG_FAILED, kept.number, *kept.failure), [])
            self.release(kept.number)
        else:
            self.send((op.MSG_EXITED, kept.number, *kept.status), [])

    # --- a new supervisor ---------------------------------------------------------------------

    def supervisor_died(self) -> None:
        """Kill what belonged to it alone; start a successor for the rest, if there is any."""
        self.epoll.unregister(self.sock.fileno())
        self.sock.close()
        self.sock = None
        if self.successor:
            os.waitpid(self.successor, 0)
            self.successor = 0
        now = time.monotonic()
        self.takeovers = [t for t in self.takeovers if now - t < _TAKEOVER_SECONDS] + [now]
        hopeless = len(self.takeovers) > _MAX_TAKEOVERS
        for kept in list(self.kept.values()):
            if hopeless or not kept.cookie:
                self.abandon(kept)
        self.start_successor()

    def abandon(self, kept: Kept) -> None:
        """Kill, with all that it has started; it is released when it has been reaped."""
        kept.abandoned = True
        if kept.status is not None:
            # It ended by itself, and what it has left in the background lives on.
            self.empty(kept.group, "dissolve")
            self.release(kept.number)
        elif not kept.lives_on:
            _signal.pidfd_send_signal(kept.pidfd, _signal.SIGKILL)
            self.empty(kept.group, "kill")

    def empty(self, group: bytes, how: str) -> None:
        """Have another process see to a cgroup: it may take a while until the last has ended."""
        if not group:
            return
        code = (
            f"import sys; sys.path.append({sys.path[-1]!r}); "
            "from craterun.linux.emptying import main; main(*sys.argv[1:])"
        )
        command = [self.takeover[0], "-I", "-S", "-c", code, how, os.fsdecode(group)]
        try:
            self.helpers.append(os.posix_spawn(command[0], command, os.environ))
        except OSError:
            return  # no more processes here; it goes with the container, whose keeper we may be

    def start_successor(self) -> None:
        """Start another supervisor, as a child of ours; later, if there is no room for one now.

        Until then its containers live on, and what they write waits in their pipes.
        """
        self.successor_due = any(not kept.abandoned for kept in self.kept.values())
        if not self.successor_due:
            return
        if self.launcher.native is not None:
            self.launcher.native.forget_parts()
        try:
            ours, theirs = socket_pair()
            try:
                os.set_inheritable(theirs.fileno(), True)
                command = [*self.takeover, str(theirs.fileno())]
                self.successor = os.posix_spawn(command[0], command, os.environ)
            finally:
                theirs.close()
            self.epoll.register(ours.fileno(), select.EPOLLIN)
        except OSError:
            return
        self.sock = ours
        self.successor_due = False

    def hand_over(self) -> None:
        """Tell a successor about everything that is kept."""
        for kept in list(self.kept.values()):
            if kept.abandoned:
                continue
            head = (op.MSG_ADOPTED, kept.number, kept.pid, kept.start_time, kept.cookie)
            state = (kept.started, kept.status, kept.lock >= 0)
            fds = [
                kept.pidfd,
                *((kept.lock,) if kept.lock >= 0 else ()),
                *kept.pipes[: kept.outputs],
            ]
            self.send((*head, *state), fds)
        self.send((op.MSG_ADOPTED, -1), [])
