"""The processes that run commands: forked from one that has imported everything, one for each.

The *spawner* is the server's first child, forked before the server has an event loop or threads,
so that its own forks are sound for ever. It forks a *worker* whenever it is told to, and tells how
each ended. A worker waits for its job, becomes as much like the client as a process can
(environment, directory, streams, ignored signals), runs the command line, and ends.
"""

from __future__ import annotations

import gc
import io
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn

import msgspec

from craterun.core import flags as f
from craterun.linux import calls
from craterun.serve import desk, frames
from craterun.serve.hello import Hello, decode_hello
from craterun.serve.loans import Launch, Signal
from craterun.supervisor.main import raise_open_files

MESSAGE_BYTES = 4096
"""The longest message between server and spawner."""
_DESK_FD = 3


class Born(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The spawner has forked; along come the worker's socket and its pidfd."""

    pid: int


class Stillborn(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """An order that could not be carried out: something is short.

    :ivar errno: what the kernel said
    """

    errno: int


class Ended(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A worker was reaped.

    :ivar code: si_code of waitid(2)
    :ivar status: si_status
    """

    pid: int
    code: int
    status: int


class Code(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A worker's command has ended, and all descriptors but this one are closed."""

    code: int


class Decline(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A worker's command has done nothing yet, and must be run by the client itself."""


class Start(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Start a container in the background; answered by an `Answer`.

    :ivar request: what the server's session makes of it
    """

    request: bytes


class HandOver(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Run a container in the foreground of the client; the worker's own job is done."""

    request: bytes


class Answer(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The server's answer to `Start`.

    :ivar started: a container's id, or the pid of a command in one
    """

    started: str = ""
    error: str = ""
    exit_code: int = 125


FromSpawner = Born | Stillborn | Ended
FromWorker = Code | Decline | Start | HandOver | Launch | Signal


class Desk:
    """A worker's connection to the server, for the command that it runs.

    :ivar socket: blocking
    """

    def __init__(self, sock: socket.socket) -> None:
        """Takes ownership."""
        self.socket = sock

    def start(self, request: bytes) -> Answer:
        """Have the server start a container in the background.

        :raises OSError: the server has gone
        """
        self.tell(Start(request))
        return msgspec.msgpack.decode(self.receive(), type=Answer)

    def hand_over(self, request: bytes) -> NoReturn:
        """Have the server run a container in the foreground of our client; does not return."""
        self.tell(HandOver(request))
        os._exit(0)

    def tell(self, message: FromWorker) -> None:
        """Send."""
        self.socket.sendall(frames.frame(msgspec.msgpack.encode(message)))

    def receive(self) -> bytes:
        """The next payload.

        :raises ConnectionResetError: there is none
        """
        return self._exactly(int.from_bytes(self._exactly(4), "little"))

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise ConnectionResetError("the server has gone")
            data += more
        return bytes(data)

    def receive_job(self) -> tuple[Hello, Sequence[int]] | None:
        """A client's hello with its descriptors; None if there is none any more."""
        data, fds, _, _ = socket.recv_fds(
            self.socket, 4, frames.HELLO_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            return None
        data += self._exactly(4 - len(data))
        return decode_hello(self._exactly(int.from_bytes(data, "little"))), fds

    def keep_only_this(self) -> None:
        """Close every descriptor but ours, which becomes `_DESK_FD`, and the standard streams."""
        self.socket = _keep_only(self.socket)

    def keep_nothing_else(self) -> None:
        """Close every descriptor but ours; the standard streams are /dev/null."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for number in range(_DESK_FD):
            os.dup2(null, number)
        calls.close_range(_DESK_FD + 1)


def _keep_only(sock: socket.socket) -> socket.socket:
    """Close every descriptor but the standard streams and ``sock``, which becomes `_DESK_FD`."""
    number = sock.detach()
    if number != _DESK_FD:
        os.dup2(number, _DESK_FD, inheritable=False)
    calls.close_range(_DESK_FD + 1)
    return socket.socket(fileno=_DESK_FD)


class Crew(NamedTuple):
    """What spawner and workers do.

    :ivar rehearse: called in each worker before it has a job: what it does then for the first time,
        and above all what memory it touches, takes no time later
    :ivar run: called in each worker with the command line's arguments; returns the exit code
    """

    rehearse: Callable[[], None]
    run: Callable[[list[str]], int]


def spawn(crew: Crew) -> tuple[int, socket.socket]:
    """Fork the spawner. Returns its pid and the socket to it; both are the caller's."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        ours.setblocking(False)
        return pid, ours
    try:
        ours.close()
        # Signals of the terminal are for the server, which tells us of what concerns us.
        os.setsid()
        _reset_signals()
        calls.prctl(f.PR_SET_PDEATHSIG, signal.SIGKILL)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, 0)
        os.dup2(null, 1)  # whoever waits for the end of the server's output does not wait for us
        calls.set_process_name(b"craterun-spawn")
        gc.collect()
        # Not the server's socket: who waits there when the server closes it is to know at once.
        own = _keep_only(theirs)
        gc.freeze()  # a collection in a worker would copy every page that it looks at
        raise_open_files()  # each worker takes one
        _Spawner(own, crew, limits).serve()
    finally:
        os._exit(1)


def _reset_signals() -> None:
    """What our server was told to ignore is nothing to workers, which ignore what their clients do:
    as the interpreter has it when it starts, less the handler of SIGINT.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        with suppress(OSError):  # SIGKILL and SIGSTOP
            signal.signal(number, signal.SIG_DFL)


class _Spawner:
    """The spawner's state and its loop."""

    def __init__(self, sock: socket.socket, crew: Crew, limits: tuple[int, int]) -> None:
        """:param limits: of open files, for workers: what their clients have, too"""
        self._socket = sock
        self._crew = crew
        self._limits = limits
        self._pids: dict[int, int] = {}
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def serve(self) -> None:
        """Until the server is gone, with which the workers end."""
        while True:
            for fd, _ in self._poll.poll():
                if fd != self._socket.fileno():
                    self._reap(fd)
                elif self._is_wanted():
                    self._fork()
                else:
                    self._end()

    def _is_wanted(self) -> bool:
        """Whether the server orders a worker; else it is gone."""
        try:
            return bool(self._socket.recv(MESSAGE_BYTES))
        except ConnectionResetError:
            return False  # and had not heard all that we told it

    def _reap(self, pidfd: int) -> None:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        if result is not None:
            self._poll.unregister(pidfd)
            os.close(pidfd)
            pid = self._pids.pop(pidfd)
            self._tell(Ended(pid, result.si_code, result.si_status))

    def _fork(self) -> None:
        """Carry out an order. If that cannot be done, one client does without, and no more."""
        try:
            self._beget()
        except OSError as error:
            self._tell(Stillborn(error.errno or 0))

    def _beget(self) -> None:
        """A worker, of which the server knows; or else one that ends, or none.

        :raises OSError: there is no room for it
        """
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            with ours:
                pid = os.fork()
                if pid == 0:
                    try:
                        theirs.close()
                        _work(Desk(ours), self._crew, self._limits)
                    finally:
                        os._exit(1)
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
            self._pids[pidfd] = pid
            self._poll.register(pidfd, select.POLLIN)
            self._tell(Born(pid), [theirs.fileno(), pidfd])

    def _tell(self, message: FromSpawner, fds: Sequence[int] = ()) -> None:
        """:raises OSError: the kernel has no room for it"""
        try:
            socket.send_fds(self._socket, [msgspec.msgpack.encode(message)], list(fds))
        except ConnectionError:
            self._end()  # the server is gone

    def _end(self) -> NoReturn:
        """Take the workers along, as nobody needs them, and reap them: not every PID 1 would."""
        for pidfd in self._pids:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pidfd in self._pids:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os._exit(0)


def _work(own: Desk, crew: Crew, limits: tuple[int, int]) -> None:
    """A worker's life. Does not return.

    :param limits: of open files
    """
    calls.prctl(f.PR_SET_PDEATHSIG, signal.SIGKILL)
    own.keep_only_this()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    calls.set_process_name(b"craterun-worker")
    crew.rehearse()
    job = own.receive_job()
    if job is None:
        os._exit(0)
    desk.current = own
    hello, fds = job
    try:
        _become(hello, fds)
        try:
            code = crew.run([os.fsdecode(argument) for argument in hello.arguments])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1 if error.code else 0
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # too late, as after the end of a process
    except desk.DeclinedError:
        own.tell(Decline())
        os._exit(0)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT  # as `__main__` has it
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    _flush()
    own.keep_nothing_else()  # whoever reads our output sees its end before the client's
    own.tell(Code(code & 0xFF))
    os._exit(0)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            continue


def _become(hello: Hello, fds: Sequence[int]) -> None:
    """Everything that makes a command of ours the client's."""
    *streams, here = fds
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    os.fchdir(here)
    for fd in fds:
        os.close(fd)
    os.environ.clear()
    for entry in hello.environment:
        key, _, value = entry.partition(b"=")
        os.environb[key] = value
    # Entering a user namespace makes us root there, with another default than the client's.
    os.environ.setdefault("CRATERUN_ROOT", os.fsdecode(hello.root))
    time.tzset()
    _open_streams(hello.encodings.decode().split())
    sys.argv = ["craterun", *map(os.fsdecode, hello.arguments)]
    for number in hello.ignored:
        signal.signal(number, signal.SIG_IGN)
    if signal.SIGINT not in hello.ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # last: it can be raised from here


def _open_streams(words: list[str]) -> None:
    """As the interpreter opens them when it starts."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        encoding, errors = words[2 * number : 2 * number + 2]
        raw = io.FileIO(number, "r" if number == 0 else "w", closefd=False)
        buffer = io.BufferedReader(raw) if number == 0 else io.BufferedWriter(raw)
        buffered = number < 2 and not os.isatty(number)
        stream = io.TextIOWrapper(buffer, encoding, errors, "\n", line_buffering=not buffered)
        setattr(sys, name, stream)
