"""What the child does between clone3 and execve: make the plan's system calls, one after the other.

The rules of this file: no imports at run time, no logging, no decisions that the plan could have
made (`core.program`), and as little code as can be, since each page that it touches has to be
copied. An error ends the child with one record on the error pipe (number of the call, errno,
sometimes a few bytes of evidence); the supervisor, which knows the plan, turns it into a sentence.
End-of-file on that pipe without a record means that execve succeeded, since it is close-on-exec.
"""

from __future__ import annotations

import _signal
import _socket
import os
import resource
import sys
from fcntl import ioctl

from craterun.core import flags as f
from craterun.core import opcodes as op
from craterun.keeper.init import SIGNALS, be_init
from craterun.keeper.stamps import Stamps
from craterun.linux import calls

TYPE_CHECKING = False  # typing is an import that the keeper does without
if TYPE_CHECKING:
    from typing import Any, NoReturn

LOWEST_FD = 16
"""The keeper opens nothing below, so that the child's own descriptors collide with none of it."""

stamps = Stamps()
"""When children called execve(2)."""

_EVIDENCE_BYTES = 256
_EXIT_SETUP_FAILED = 125
_TIOCSCTTY = 0x540E
_TIOCSWINSZ = 0x5414
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441


def opening(
    streams: tuple[int, int, int], error: int, given: tuple[int, ...], open_files: tuple[int, int]
) -> tuple[Any, ...]:
    """The first calls of a child: it keeps what is its own, where programs expect it, and inherits
    nothing else of the keeper's.

    :param streams: the pipes' ends for descriptors 0, 1 and 2, or -1
    :param error: write end of the error pipe
    :param given: what else the plan expects, from `opcodes.GIVEN_FD` on
    :param open_files: RLIMIT_NOFILE of the process to be
    """
    limits = b"".join(number.to_bytes(8, sys.byteorder, signed=True) for number in open_files)
    connect: list[Any] = [(_DUP2, (fd, n), n, None) for n, fd in enumerate(streams) if fd >= 0]
    for number, fd in enumerate((error, *given), op.ERROR_FD):
        connect.append((_DUP3, (fd, number, os.O_CLOEXEC), number, None))
    return (
        *connect,
        (_SYSCALL, (_NR_CLOSE_RANGE, op.GIVEN_FD + len(given), -1, 0), 0, None),
        (_SETRLIMIT, (resource.RLIMIT_NOFILE, limits), 0, None),
        (_UMASK, (0,), None, None),  # modes in the plan are meant as they stand
    )


def carry_out(first: tuple[Any, ...], program: Any) -> NoReturn:
    """Make the calls of ``first`` (see `opening`), then those of ``program``: parts of a plan as
    `core.program` assembles them.
    """
    done = -len(first)
    call: Any = ()
    part: Any = first
    functions = _FUNCTIONS
    try:
        for part in (first, *program):
            remaining = iter(part)
            for call in remaining:
                function, arguments, wanted, lenient = call
                result = functions[function](*arguments)
                if result != wanted and (wanted is not None or result < 0):
                    number = calls.errno() if result < 0 else 0
                    if lenient is None or (lenient[0] and number not in lenient[0]):
                        _report(done + _position(part, call), number, b"")
                    for _ in range(lenient[1]):
                        next(remaining)
            done += len(part)
        _report(done - 1, 0, b"xthe plan ends without executing anything")
    except OSError as failure:
        _report(done + _position(part, call), failure.errno or 0, evidence_of(failure))
    except BaseException as failure:
        _report(done + _position(part, call), 0, b"x" + repr(failure).encode())
    finally:
        os._exit(_EXIT_SETUP_FAILED)


def evidence_of(failure: OSError) -> bytes:
    """What `core.failures` is to know of it. A file name that is bytes is a path, or what `execute`
    has found out; one that is not is the name of a call, of `linux.calls`.
    """
    name = failure.filename
    return b"p" + name if isinstance(name, bytes) else b"c" + str(name or "").encode()


def _position(part: Any, call: Any) -> int:
    """Where in ``part`` this very call is."""
    return next((n for n, other in enumerate(part) if other is call), 0)


def _report(call: int, errno: int, evidence: bytes) -> NoReturn:
    """One record, small enough (PIPE_BUF) to be written whole, and the end."""
    if call < 0:  # of `opening`, which no plan explains
        call, evidence = 0, b"xcannot take over descriptors: " + os.strerror(errno).encode()
    header = bytes((op.RECORD_ERROR, call & 255, call >> 8, errno & 255, errno >> 8))
    os.write(op.ERROR_FD, header + evidence[:4000])
    os._exit(_EXIT_SETUP_FAILED)


# --- what is more than one system call ------------------------------------------------------------


def _check_directory(fd: int, device: int, inode: int) -> int:
    """Whether ``fd`` is the directory that was checked when the plan was made."""
    found = os.fstat(fd)
    if (found.st_dev, found.st_ino) != (device, inode):
        raise OSError(116, "changed while the container was starting")
    return 0


def _check_inside() -> int:
    """A working directory outside of the root has no path from it; getcwd(3) says ENOENT then."""
    if not os.getcwdb().startswith(b"/"):
        raise OSError(2, "outside the container")
    return 0


def _joined_null() -> int:
    """Standard input from the /dev/null of the container that we joined, if it is no such thing
    from the keeper's, which is on descriptor 0 already.
    """
    try:
        # Non-blocking, because the container may have put a FIFO there.
        fd = os.open(b"/dev/null", os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return 0
    if os.fstat(fd).st_rdev == os.makedev(1, 3):
        os.set_blocking(fd, True)
        os.dup2(fd, 0)
    os.close(fd)
    return 0


def _open_terminal(sock: int, owner: int, size: bytes) -> int:
    """Make the terminal ours and pass its other side out by ``sock``."""
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    master = os.open(b"/dev/pts/ptmx", flags)
    if os.fstat(master).st_rdev != os.makedev(5, 2):
        raise OSError(25, "not a terminal multiplexer")
    ioctl(master, _TIOCSPTLCK, bytes(4))
    # By the open master, not by its name: nobody inside can have put something else there.
    terminal = ioctl(master, _TIOCGPTPEER, flags)
    os.fchown(terminal, owner, -1)
    ioctl(terminal, _TIOCSWINSZ, size)
    ioctl(terminal, _TIOCSCTTY, 0)
    for number in (0, 1, 2):
        os.dup2(terminal, number)
    channel = _socket.socket(fileno=sock)
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, master.to_bytes(4, sys.byteorder))
    channel.sendmsg([b"t"], [rights])
    channel.close()
    os.close(terminal)
    os.close(master)
    return 0


def _session_keyring() -> int:
    calls.new_session_keyring()
    return 0


def _fork_inside() -> int:
    """Go on in a child. The keeper must be its parent, since it reaps: hence CLONE_PARENT. It
    learns the pid from us, while nobody else can have reaped it, so the number is not reused.
    """
    pid, _ = calls.clone3(f.CLONE_PARENT, exit_signal=0)
    if pid:
        os.write(op.ERROR_FD, bytes((op.RECORD_PID,)) + pid.to_bytes(4, "little"))
        os._exit(0)
    return 0


def _start_init() -> int:
    """Stay behind as PID 1 and go on in a child.

    Blocked signals are queued even for PID 1, which the kernel otherwise shields from those that it
    has no handler for; sigwaitinfo then takes them one at a time.
    """
    _signal.pthread_sigmask(_signal.SIG_BLOCK, SIGNALS)
    pid = os.fork()
    if pid:
        os.close(op.ERROR_FD)
        stamps.drop()  # nothing inside may have a way to write there
        be_init(pid)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    return 0


def _execute(candidates: Any, arguments: Any, environment: Any) -> int:
    argv, env = list(arguments), dict([variable.split(b"=", 1) for variable in environment])
    stamps.stamp()
    failed = b""
    refusal = OSError(2, "not found")
    for path in candidates:
        try:
            os.execve(path, argv, env)
        except OSError as error:
            # As execvp(3): go on looking, remember a refusal, stop at anything else. ENOENT for a
            # file that does exist means that its interpreter or loader is missing.
            if error.errno in (2, 20) and not _exists(path):
                continue
            if not failed:
                failed, refusal = path, error
            if error.errno != 13:
                break
    evidence = failed + b"\0" + (_head(failed) if failed else b"")
    raise OSError(refusal.errno, "execve", evidence)


def _exists(path: bytes) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno not in (2, 20)
    return True


def _head(path: bytes) -> bytes:
    """The first bytes of a file that would not execute: they tell a script or an ELF file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return os.read(fd, _EVIDENCE_BYTES)
    except OSError:
        return b""


_SPECIAL: Any = {
    "check_directory": _check_directory,
    "check_inside": _check_inside,
    "execute": _execute,
    "fork_inside": _fork_inside,
    "joined_null": _joined_null,
    "open_terminal": _open_terminal,
    "session_keyring": _session_keyring,
    "start_init": _start_init,
}
_FUNCTIONS: Any = [
    *(calls.plain_function("syscall" if number else name) for name, number in op.CALLS),
    *(_SPECIAL[name] for name in op.SPECIAL),
]
_CODES = {name: code for code, (name, _) in enumerate(op.CALLS)}
_NR_CLOSE_RANGE = dict(op.CALLS)["close_range"]
_SYSCALL, _DUP2, _DUP3 = _CODES["syscall"], _CODES["dup2"], _CODES["dup3"]
_SETRLIMIT, _UMASK = _CODES["setrlimit"], _CODES["umask"]
