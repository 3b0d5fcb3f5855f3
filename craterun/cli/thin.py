"""The way to a server that is there (`craterun serve`): a client that imports nothing.

It hands over its arguments, environment, working directory and standard streams, passes signals on,
and exits with the command's code. Whatever is unusual, and whenever nobody answers, it steps back,
and the command runs in this process as if there were no server.
"""

from __future__ import annotations

import _signal
import _socket
import os
import sys

from craterun.serve import frames

TYPE_CHECKING = False  # typing is an import that the client does without
if TYPE_CHECKING:
    from types import FrameType

_SERVER_LOST = 125
_OWN_COMMANDS = ("serve", "shutdown", "bench")
_NOT_IN_THE_DARK = ("batch",)
"""What has to know whether its standard streams were closed (`cli.closed`), as no server does."""
_PASSED_ON = (
    _signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT, _signal.SIGUSR1,
    _signal.SIGUSR2, _signal.SIGWINCH, _signal.SIGTSTP,
)  # fmt: skip
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "user", "uts")
_NOT_EVERYWHERE = (
    "/proc/self/personality", "/proc/self/coredump_filter", "/proc/self/timerslack_ns",
    "/proc/self/attr/current",
)  # fmt: skip
"""What a process inherits, if the kernel was built with it; the last is for security modules."""
_FIRST_MAPPING_BYTES = 64
"""The kernel looks at no more mappings than it has to."""
_LONGEST_ADDRESS = 107
"""sun_path of unix(7), less its zero byte."""
_ANSWER_SECONDS = 10
"""A server answers at once. One that does not was stopped, or is ending: nobody waits for it."""


class Options:
    """What is for every command, taken out of the arguments.

    :ivar rest: the arguments without it
    :ivar root: --root, or None
    :ivar socket: --socket, or None
    :ivar debug: whether --debug was given
    :ivar serve: whether --no-serve was not
    """

    __slots__ = ("debug", "rest", "root", "serve", "socket")

    def __init__(self, arguments: list[str]) -> None:
        """Such options may stand anywhere before ``--``."""
        self.rest: list[str] = []
        self.root: str | None = None
        self.socket: str | None = None
        self.debug = False
        self.serve = True
        position = 0
        while position < len(arguments):
            argument = arguments[position]
            position += 1
            if argument == "--":
                self.rest += ["--", *arguments[position:]]
                return
            if argument == "--debug":
                self.debug = True
            elif argument == "--no-serve":
                self.serve = False
            elif argument in ("--root", "--socket") and position < len(arguments):
                setattr(self, argument[2:], arguments[position])
                position += 1
            elif argument.startswith(("--root=", "--socket=")):
                name, _, value = argument.partition("=")
                setattr(self, name[2:], value)
            else:
                self.rest.append(argument)

    def apply(self) -> None:
        """Let everything below find the state directory and the server in the environment."""
        if self.root is not None:
            os.environ["CRATERUN_ROOT"] = self.root
        if self.socket is not None:
            os.environ["CRATERUN_SOCKET"] = self.socket


def state_root() -> str:
    """`state.store.default_root`, without what that has to import."""
    chosen = os.environ.get("CRATERUN_ROOT")
    if chosen:
        return os.path.abspath(chosen)
    if os.geteuid() == 0:
        return "/var/lib/craterun"
    return os.path.expanduser("~/.craterun")


def socket_path() -> str:
    """Where a server would listen."""
    return os.environ.get("CRATERUN_SOCKET") or os.path.join(state_root(), frames.SOCKET_NAME)


def try_server(options: Options, closed: tuple[int, ...] = ()) -> None:
    """Have a server run the command, and exit with its code; return if it is to be run here.

    :param closed: standard streams that were closed
    """
    options.apply()
    own = _OWN_COMMANDS + (_NOT_IN_THE_DARK if {0, 1}.intersection(closed) else ())
    if not options.serve or options.debug or options.rest[:1] in ([name] for name in own):
        return
    sock = connect(socket_path())
    if sock is None:
        return
    if _is_in_background():
        sock.close()  # there, reading from the terminal would not stop us
        return
    _Client(sock).run(options.rest)


def connect(path: str) -> _socket.socket | None:
    """A blocking connection to the server at ``path``; None if there is none, or none that takes
    it or what is sent within `_ANSWER_SECONDS`.
    """
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, _timeval(_ANSWER_SECONDS))
        if len(os.fsencode(path)) <= _LONGEST_ADDRESS:
            sock.connect(path)
        else:
            folder, name = os.path.split(path)
            where = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.connect(f"/proc/self/fd/{where}/{name}")
            finally:
                os.close(where)
    except OSError:
        sock.close()
        return None
    return sock


def limit_wait(sock: _socket.socket, *, limited: bool) -> None:
    """Have ``sock`` receive within `_ANSWER_SECONDS` (or else EAGAIN), or whenever it may be."""
    seconds = _ANSWER_SECONDS if limited else 0
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, _timeval(seconds))


def _timeval(seconds: int) -> bytes:
    return seconds.to_bytes(8, sys.byteorder) + bytes(8)


def _is_in_background() -> bool:
    try:
        return os.tcgetpgrp(0) != os.getpgrp()
    except OSError:
        return False  # stdin is not our terminal


def hello(arguments: list[str], ignored: list[int]) -> bytes:
    """The first message (`serve.hello.Hello`)."""
    root = state_root()
    return frames.pack(
        [
            frames.VERSION,
            program(),
            [os.fsencode(argument) for argument in arguments],
            # One without a name can be inherited, but not set.
            [key + b"=" + value for key, value in os.environb.items() if key],
            os.fsencode(root),
            os.fsencode(os.path.realpath(root)),
            list(map(int, ignored)),
            _encodings(),
            circumstances(),
        ]
    )


def program() -> bytes:
    """Which craterun this is, in which interpreter, with which settings."""
    from craterun import __version__

    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    flags = (sys.flags.optimize, sys.flags.dev_mode, sys.getfilesystemencoding(), sys.warnoptions)
    return f"{__version__} {package} {sys.prefix} {sys.version} {flags}".encode()


def circumstances() -> list[frames.Packable]:
    """What a container inherits from who starts it (`serve.hello.Circumstances`)."""
    links = map(_link_if_any, _NAMESPACES)
    root = os.stat("/")
    numbers = (
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getscheduler(0),
        os.sched_getparam(0).sched_priority,
    )
    others = [str(numbers).encode(), _read("/proc/self/oom_score_adj")]
    others += map(_read_if_any, _NOT_EVERYWHERE)
    # The policy for memory of the program itself is that of the process, unlike that of its heap.
    others += _read_if_any("/proc/self/numa_maps", _FIRST_MAPPING_BYTES).split(None, 2)[1:2]
    if os.geteuid() != 0:
        others.append(_read("/proc/self/cgroup"))  # containers are put below it
    return [
        _read("/proc/self/status"),
        _read("/proc/self/limits"),
        " ".join(links).encode(),
        f"{root.st_dev}:{root.st_ino}".encode(),
        b" ".join(others),
    ]


def _read(path: str, size: int = 16384) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)


def _read_if_any(path: str, size: int = 16384) -> bytes:
    try:
        return _read(path, size)
    except OSError:
        return b"-"


def _link_if_any(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/ns/{name}")
    except OSError:
        return "-"  # built without such namespaces


def _encodings() -> bytes:
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return " ".join(f"{stream.encoding} {stream.errors}" for stream in streams).encode()


class _Client:
    """This process while a server runs its command."""

    def __init__(self, sock: _socket.socket) -> None:
        """Takes ownership of ``sock``."""
        self._socket = sock
        self._pending: list[int] = []
        self._answered = False
        self._greeted = False
        self._before = {number: _signal.getsignal(number) for number in _PASSED_ON}
        self._heeded = [n for n, handler in self._before.items() if handler != _signal.SIG_IGN]
        self._terminal: object = None

    def run(self, arguments: list[str]) -> None:
        """Exits, unless the command is to be run here."""
        for number in self._heeded:
            _signal.signal(number, self._note)
        try:
            accepted = self._greet(arguments)
        except OSError:
            accepted = False
        if accepted:
            self._save_terminal()
            self._finish()
        self._socket.close()
        for number in self._pending:
            self._take_effect(number)
        for number in self._heeded:
            _signal.signal(number, self._before[number])

    def _greet(self, arguments: list[str]) -> bool:
        ignored = [n for n, handler in self._before.items() if handler == _signal.SIG_IGN]
        message = frames.frame(hello(arguments, ignored))
        if len(message) > frames.MAX_HELLO_BYTES:
            return False
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fds = b"".join(n.to_bytes(4, sys.byteorder) for n in (0, 1, 2, here))
            ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)]
            sent = self._socket.sendmsg([message], ancillary, _socket.MSG_NOSIGNAL)
            if sent < len(message):
                # A server that has all of it may have run the command by now, and closed: no call
                # of ours may fail after that, or the command would be run here once more.
                self._socket.sendall(message[sent:], _socket.MSG_NOSIGNAL)
        finally:
            os.close(here)
        self._await_answer()
        if self._receive()[0] != frames.ACCEPTED:
            return False
        self._greeted = True
        pending, self._pending = self._pending, []
        for number in pending:
            self._pass_on(number)
        return True

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._greeted:
            self._pass_on(number)
        elif number == _signal.SIGWINCH or not self._withdraw():
            self._pending.append(number)  # the answer is there, and about to be read
        else:
            self._take_effect(number)

    def _await_answer(self) -> None:
        """Until there is something to receive, be it the end."""
        limit_wait(self._socket, limited=True)
        try:
            self._socket.recv(1, _socket.MSG_PEEK)  # so that `_withdraw` still sees it
        except BlockingIOError:
            self._withdraw()
        except ConnectionError:
            pass  # which is an end, too
        self._answered = True
        limit_wait(self._socket, limited=False)

    def _withdraw(self) -> bool:
        """Take the request back; False if there is an answer already.

        A server runs nothing before it has told us that it has accepted (`serve.attendance`), which
        it cannot tell a connection that is shut down: unix(7) decides that under one lock. So what
        was not accepted by then never will be, and may be run here.

        It may accept between our look and the shutdown, though. Then its answer is still there to
        be received, and we do not run the command once more; but the server takes us for a client
        that was killed: it ends the command, and a container of ``run`` goes on. A signal that
        kills us now has the same effect as one that comes a moment later and cannot be passed on.
        """
        if self._answered:
            return False
        try:
            self._socket.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._socket.shutdown(_socket.SHUT_RDWR)
            return True
        except OSError:
            return False
        return False

    def _pass_on(self, number: int) -> None:
        try:
            self._socket.sendall(frames.frame(bytes([number])), _socket.MSG_NOSIGNAL)
        except OSError:
            return  # about to be noticed by whoever receives

    def _take_effect(self, number: int) -> None:
        """What a signal that we heed does to a process without a server."""
        _signal.signal(number, self._before[number])
        os.kill(os.getpid(), number)
        _signal.signal(number, self._note)

    def _receive(self) -> tuple[int, int]:
        """The next reply; DECLINED if the server has gone."""
        data = b""
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"):
            wanted = 4 if len(data) < 4 else 4 + int.from_bytes(data[:4], "little")
            try:
                more = self._socket.recv(wanted - len(data))
            except ConnectionError:
                more = b""
            if not more:
                return frames.DECLINED, 0
            data += more
        return frames.kind_and_value(data[4:])

    def _finish(self) -> None:
        """Until the command has ended; exits, unless the server has asked us to run it."""
        while True:
            kind, value = self._receive()
            if kind == frames.EXITED:
                os._exit(value)
            if kind == frames.SIGNALED:
                self._die_of(value)
            if kind == frames.SUSPENDED:
                # Not by SIGSTOP: where no shell is above us that could have us go on (an orphaned
                # process group: ssh -t), the kernel ignores Ctrl-Z.
                self._take_effect(_signal.SIGTSTP)
                self._pass_on(_signal.SIGCONT)
            if kind == frames.DECLINED and value:
                return
            if kind == frames.DECLINED:
                self._give_up("the server that ran this command has gone", left=True)
            if kind == frames.SHUT_DOWN:
                text = "the server was shut down before this command had ended"
                self._give_up(text, left=bool(value))

    def _give_up(self, text: str, *, left: bool) -> None:
        """:param left: containers go on"""
        self._restore_terminal()
        if left:
            text += "; containers that it ran live on: see craterun ps"
        os.write(2, f"craterun: {text}\n".encode())
        os._exit(_SERVER_LOST)

    def _die_of(self, number: int) -> None:
        if number != _signal.SIGKILL:  # which has no other disposition
            _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [number])
        os.kill(os.getpid(), number)
        os._exit(128 + number)  # of a signal that does not kill by default

    def _save_terminal(self) -> None:
        """The command may put our terminal in raw mode, and die with the server."""
        if os.isatty(0):
            import termios

            self._terminal = termios.tcgetattr(0)

    def _restore_terminal(self) -> None:
        if self._terminal is not None:
            import termios

            termios.tcsetattr(0, termios.TCSANOW, self._terminal)  # type: ignore[arg-type]
